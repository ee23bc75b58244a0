// Publish: complete, immutable directories of versions, reached by one symbolic link, for readers that load at any
// time.
//
//   LINK                          -> LINK.generations/v0000000007
//   LINK.generations/v0000000007     config, tokenizer, index, shards
//
// Shards are hard links to those of the model directory, so a generation costs nothing until the next sync, which
// writes a new file instead of changing a shard that has two names (apply.h). In a model of several shards their names
// contain the version: if the link moves while a reader loads, the reader finds a file missing and never mixes two
// versions. A reader that resolves the link first (readlink -f) is not disturbed as long as the generation is kept.
// Threads: under lock_history().
// Durability: the link leads to a whole, durable generation at any moment, and to the new one, durably, on return.
// Format page: docs/formats/directory.md
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "history/history.h"

namespace lathe::history {

struct PublishOptions {
  int64_t keep = 3;   // generations, this one included
  bool copy = false;  // copies instead of hard links: for programs that write into files of the model directory
};

struct PublishReport {
  int64_t version = 0;
  std::string directory;           // of the generation
  int64_t linked = 0, copied = 0;  // shards
  int64_t removed = 0;             // generations
};

// Publishes the version the shards hold. kInvalidArgument if `link` exists and is not a symbolic link.
Result<PublishReport> publish(io::Env& env, const History& history, const std::string& link,
                              const PublishOptions& options = {});

}  // namespace lathe::history
