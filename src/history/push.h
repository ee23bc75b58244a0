// Push and receive: a copy of a model directory elsewhere follows by deltas.
//
// The copy's root tells which version it holds; the deltas from that version on are sent. Each is checked, made durable
// and applied like one of the copy's own, and the copy's root must then be the delta's. So a copy made with any program
// (rsync, cp) can be brought up to date, whatever it calls its version.
// Threads: one; the copy's locks are taken.
// Durability: what receive() has accepted is durable at the copy and applied.
// Format page: docs/protocols/push.md
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>

#include "base/result.h"
#include "history/history.h"

namespace lathe::history {

struct CopyState {
  int64_t version = 0;
  Root root;
};

// The copy's state; nothing needs to have been pushed to it yet.
Result<CopyState> copy_state(io::Env& env, const std::string& directory, const ApplyOptions& options = {});

// The deltas that bring a copy in `state` to the newest version. kConflict if no version of the history is like it, or
// if that version is only inside a merged delta.
Result<std::vector<DeltaFile>> deltas_for(const History& history, const CopyState& copy);

// Fills all of `out`, or fails.
using ReadBytes = std::function<Status(std::span<std::byte> out)>;

// Takes one delta of `size` bytes into `directory`. kConflict if it does not begin with what the directory holds.
Result<CopyState> receive(io::Env& env, const std::string& directory, uint64_t size, const ReadBytes& read,
                          const ApplyOptions& options = {});

// All of the above for a copy in another directory of this machine; made whole if it does not exist.
Result<CopyState> push(io::Env& env, const std::string& directory, const std::string& destination,
                       const ApplyOptions& options = {});

// Which version each destination held at its last push. Pruning keeps them, or the copies could not be brought up to
// date.
Result<std::map<std::string, int64_t>> pushed_versions(io::Env& env, const delta::Paths& paths);
Status record_pushed(io::Env& env, const delta::Paths& paths, const std::string& destination, int64_t version);

}  // namespace lathe::history
