// Tiles: how the files of a model directory are cut, which element types they hold, and the hash of a whole state.
//
// A file is two regions, its head [0, data_offset) (of a safetensors file: length and JSON header) and its data
// [data_offset, size). Each is cut into tiles of 2 MiB, the last of a region being shorter; tiles are numbered through
// the head first. So every byte of a file belongs to one tile, and tensors' elements keep their alignment in tiles.
// Threads: values and pure functions.
// Memory: a state is 16 bytes per tile, 0.4 MB for 54 GB of weights.
// Format page: docs/formats/delta.md
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "base/result.h"
#include "codec/element_type.h"
#include "delta/safetensors.h"
#include "io/env.h"

namespace lathe::delta {

// How the codec reads elements of this type.
codec::ElementType element_type(Dtype dtype);

// `type` holds from the end of the run before (or the data's start) to `end`, bytes from the data's start.
struct TypeRun {
  uint64_t end = 0;
  codec::ElementType type = codec::ElementType::kBytes;
  friend bool operator==(const TypeRun&, const TypeRun&) = default;
};

struct FileLayout {
  std::string name;  // inside the directory
  uint64_t size = 0;
  uint64_t data_offset = 0;
  std::vector<TypeRun> runs;  // of the data, without gaps, neighbours differ; the last ends with the file
  friend bool operator==(const FileLayout&, const FileLayout&) = default;
};

// The layout of a safetensors file with this header.
FileLayout layout_of(std::string name, uint64_t file_size, const Header& header);

struct TileId {
  uint32_t file = 0;  // index into the state's files
  uint32_t tile = 0;
  friend auto operator<=>(const TileId&, const TileId&) = default;
};

struct ByteRange {
  uint64_t offset = 0;  // in the file
  uint64_t size = 0;
};

uint64_t tile_count(const FileLayout& layout);
ByteRange tile_range(const FileLayout& layout, uint64_t tile);

// "model.safetensors tile 3 (bytes 4194304 to 6291456)", for messages.
std::string describe_tile(const FileLayout& layout, uint64_t tile);

// The tile's bytes as stretches of one element type each, in order, without gaps.
std::vector<codec::TilePart> tile_parts(const FileLayout& layout, uint64_t tile);

struct FileState {
  FileLayout layout;
  std::vector<Hash128> tiles;  // tile_count(layout) of them
  friend bool operator==(const FileState&, const FileState&) = default;
};

// What a set of files contains, tile by tile. Files in ascending order of name.
struct WeightState {
  std::vector<FileState> files;

  Root root() const;
  uint64_t bytes() const;  // of all files
  uint64_t tiles() const;  // of all files
  std::string describe(TileId id) const;
  friend bool operator==(const WeightState&, const WeightState&) = default;
};

// kInvalidArgument, naming it, unless runs ascend and cover the data.
Status check(const FileLayout& layout);
// The same for every file; and unless names ascend and every file has as many hashes as tiles.
Status check(const WeightState& state);

// The state of safetensors files in a directory: reads and hashes every byte, `threads` tiles at once (0: as many as
// the machine has processors). A file that is missing or malformed is an error that names it.
Result<WeightState> hash_files(io::Env& env, const std::string& directory, std::span<const std::string> names,
                               int threads = 0);

}  // namespace lathe::delta
