// Sync: live weights into the model directory, safely and simply: whole shards, new file beside old, then renamed.
//
// Why: the directory must at any moment load as one version, the old or the new. Shards are renamed one by one, so a
// small intent file makes the set of renames one act: once it is durable, recover() finishes them.
// Threads: one per directory; the caller holds the directory's lock (lock_directory).
// Durability: sync() and rollback() are durable on return. recover() is called by every program before it reads the
// directory.
// Format: docs/formats/directory.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "io/env.h"

namespace lathe::checkpoint {

// The live bytes of a checkpoint tensor, or nothing if it is not live (it is then kept as it is on disk).
using LiveTensor = std::function<std::optional<std::span<const std::byte>>(std::string_view name)>;

// Which version of the weights a directory holds. 0 is what was there before Lathe.
struct DirectoryVersion {
  int64_t version = 0;
  std::optional<int64_t> previous;  // what rollback() goes back to
};

struct SyncReport {
  DirectoryVersion now;
  uint64_t bytes_written = 0;
  int64_t shards_written = 0;
};

// kConflict if another Lathe process works on the directory.
Result<std::unique_ptr<io::FileLock>> lock_directory(io::Env& env, const std::string& directory);

Result<DirectoryVersion> read_version(io::Env& env, const std::string& directory);

// Finishes an interrupted sync or rollback if its intent is durable, else removes what it left. Idempotent.
Status recover(io::Env& env, const std::string& directory);

// Makes the directory hold `version`. Shards without a changed byte are left alone. Refuses symbolic links (the shared
// blobs of a Hugging Face cache) and too little free space; on any failure the old files are intact.
Result<SyncReport> sync(io::Env& env, const std::string& directory, const LiveTensor& live, int64_t version);

// Puts back the shards that the last sync replaced. The result is a new version, and rolling back again undoes it.
Result<SyncReport> rollback(io::Env& env, const std::string& directory);

}  // namespace lathe::checkpoint
