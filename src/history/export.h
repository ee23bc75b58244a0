// Export: a complete model directory of any version, elsewhere. Verify: is every byte what the history says?
//
// Threads: under lock_history(); they start their own.
// Memory: 4 MiB per thread.
// Durability: an exported directory appears under its name when it is whole and durable, not before.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "history/history.h"

namespace lathe::history {

struct ExportOptions {
  int threads = 0;
  bool as_history = false;  // with a .lathe that says which version it is: the beginning of a copy to push to
  delta::Progress progress;
};

// `target` must not exist, or be an empty directory. Copies what a model is beside its weights: the files of the
// directory itself that hold no weights in some other format.
Status export_version(io::Env& env, const History& history, int64_t version, const std::string& target,
                      const ExportOptions& options = {});

// Config, tokenizer, templates...: copies, durable but for their names.
Status copy_companions(io::Env& env, const std::string& from, const std::string& to);

struct Damage {
  std::string where;  // a file, or "model.safetensors tile 3 (bytes 4194304 to 6291456)"
  std::string what;
};

struct Verification {
  bool history = true;  // false: there is none yet, so that there was nothing to compare with
  int64_t version = 0;
  Root root;
  uint64_t bytes = 0;  // of shards and deltas read
  uint64_t tiles = 0, deltas = 0;
  std::vector<Damage> damages;
};

// Needs no write access, unless a crash left something to be finished first. Hashes every tile of the shards against
// the version they hold, checks every byte of every delta against its checksums, and each delta's roots against its
// neighbours'. An error is what kept it from looking; damage is in the result.
Result<Verification> verify(io::Env& env, const std::string& directory, int threads,
                            const delta::Progress& progress = nullptr);

}  // namespace lathe::history
