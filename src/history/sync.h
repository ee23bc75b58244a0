// Sync: makes a new version of a model directory, durably: from live weights, from another directory, or from the past.
//
// The difference to the shards is written as one delta file. Its name, once durable, is the version: whatever happens
// later, the next program that works on the directory brings the shards up to it. Optimizer state and what the version
// is (VersionRecord) are in the same file, so that they belong to it or do not exist.
// Threads: one at a time per directory (lock_directory); takes lock_history() itself, so that readers wait.
// Memory: about 12 MiB per thread, whatever the model's size.
// Durability: on return the version is durable and the shards hold it. After an error the directory holds the old version,
// or the new one is durable and the error says so; either way the next call of recover() leaves one of them whole.
// Format page: docs/formats/directory.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "delta/source.h"
#include "history/history.h"

namespace lathe::history {

// Bytes that belong to the version beside the weights, in any number of pieces.
struct Attachment {
  using Sink = std::function<Status(std::span<const std::byte>)>;
  std::string name;
  std::function<Status(const Sink&)> write;
};

struct SyncOptions {
  VersionRecord record;
  std::vector<Attachment> attachments;
  bool materialize = false;    // replace symbolic links by copies first, instead of refusing them
  bool even_if_equal = false;  // a version is made although no weight differs
  ApplyOptions apply;
};

struct SyncReport {
  int64_t version = 0, previous = 0;  // equal if nothing differed and no version was made
  std::optional<int64_t> restores;    // of a rollback
  Root root;
  uint64_t delta_bytes = 0;    // of the delta file
  uint64_t bytes_written = 0;  // into shards
  uint64_t tiles_changed = 0, tiles = 0;
  int64_t shards_rewritten = 0, shards_in_place = 0;
  double durable_seconds = 0, seconds = 0;  // until the version was durable; until the shards held it
  double compare_seconds = 0;               // of these: finding the tiles that changed
};

// The version after the shards': tensors as `tensors` has them, all else as it is. `version` is greater than what the
// shards hold (kConflict), or nothing: one more. kUnsupported for symbolic links; kInvalidArgument for a tensor of
// another size; ENOSPC, with the directory whole, if there is too little room.
Result<SyncReport> sync(io::Env& env, const std::string& directory, const delta::TensorReader& tensors,
                        std::optional<int64_t> version, const SyncOptions& options = {});

// A version with the weights, and the optimizer state, of `target`; kNotFound. Nothing: an undo (lineage.h): of what
// the present weights were made from, so that the next undo goes further back.
Result<SyncReport> rollback(io::Env& env, const std::string& directory, std::optional<int64_t> target,
                            std::optional<int64_t> version = {}, const SyncOptions& options = {});
// Takes the latest rollback back; kNotFound if nothing was rolled back since something was last learned.
Result<SyncReport> redo(io::Env& env, const std::string& directory, std::optional<int64_t> version = {},
                        const SyncOptions& options = {});

}  // namespace lathe::history
