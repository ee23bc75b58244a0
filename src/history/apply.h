// apply: brings the shards from the version they hold to the one a durable delta leads to.
//
// Each shard is written in one of two ways. After a crash at any point, every tile is entirely old or entirely new once
// the journal's blocks are put over it, so applying again finishes the work.
//   * In place: only the changed 4 KiB blocks are written, a few tiles at a time, after a journal of them. Every
//     changed byte is written twice, so this is for small changes.
//   * Rewritten: the whole shard goes to a new file, renamed over the old one. For changes of more than half of the
//     shard's tiles, as when all parameters are trained, if there is room for all such shards at once. Always for a
//     shard with a second hard link, because a published generation must not change, and for one whose in-place write
//     failed, because what a file holds after a failed sync is unknown.
// Threads: one call per directory, under lock_history(); it starts its own.
// Memory: `threads` times 8 MiB, and the journal.
// Durability: on return all shards are durable at the new version and `applied` says so, in memory and on disk.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "delta/delta_reader.h"
#include "delta/source.h"
#include "history/applied.h"

namespace lathe::history {

struct ApplyOptions {
  int threads = 0;
  double rewrite_above = 0.5;  // of a shard's bytes, counted in changed tiles
  delta::Progress progress;
};

struct ApplyReport {
  uint64_t bytes_written = 0;  // into shards
  int64_t shards_rewritten = 0;
  int64_t shards_in_place = 0;
};

// Free bytes that a version needs in addition to the shards that are rewritten: for journals and the state file.
inline constexpr uint64_t kSpareBytes = uint64_t{24} << 20;

// What apply() would need on the disk in addition to the delta: kUnsupported for a shard that is a symbolic link, kIo
// with ENOSPC, naming both numbers, if there is too little. Called before a delta becomes durable, so that a full disk
// is met while the directory is whole.
Status check_room(io::Env& env, const delta::Paths& paths, const delta::DeltaReader& delta,
                  const ApplyOptions& options);

// kCorruption, naming it, if a tile is of neither version: nothing more is written then.
Status apply(io::Env& env, const delta::Paths& paths, const delta::DeltaReader& delta, Applied& applied,
             const ApplyOptions& options, ApplyReport& report);

// Replaces shards that are symbolic links by copies of what they point to, one by one, each atomically and durably.
Status materialize(io::Env& env, const delta::Paths& paths);

}  // namespace lathe::history
