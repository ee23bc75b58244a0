// Applied: which version the shards of a model directory hold, and the hash of each of their tiles.
//
// Why: with these hashes a sync finds what changed without reading the disk, and verify can name the damaged tile. The
// file is written only after all shards hold the version: a delta that starts from that version is still to be applied.
// Memory: 16 bytes per 2 MiB of weights.
// Durability: write_applied() is all or nothing, and durable on return.
// Format page: docs/formats/state.md
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "delta/paths.h"
#include "delta/tile.h"

namespace lathe::history {

struct Applied {
  int64_t version = 0;
  delta::WeightState state;
};

// Nothing if there is no such file. kCorruption if its root is not that of its hashes.
Result<std::optional<Applied>> read_applied(io::Env& env, const delta::Paths& paths);
Status write_applied(io::Env& env, const delta::Paths& paths, const Applied& applied);

// Version 0: the files that are there, made durable, hashed, and recorded.
Result<Applied> adopt(io::Env& env, const delta::Paths& paths, int threads);

// The names of the directory's safetensors files, in order.
Result<std::vector<std::string>> shard_names(io::Env& env, const std::string& directory);

// kUnsupported if a shard is a symbolic link: what it leads to may be others' too.
Status refuse_links(io::Env& env, const delta::Paths& paths);

// What the shards hold, without making anything of it: 0 if Lathe never wrote here.
Result<int64_t> read_version(io::Env& env, const std::string& directory);

}  // namespace lathe::history
