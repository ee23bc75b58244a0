// WeightSource: the weights of one version, tile by tile, wherever they are: in the shards, in a live server, in
// another directory, or in the past.
//
// Why: a sync, a rollback, an export and a merge of deltas are then one thing, the difference between two sources.
// Threads: hash() and read() from any; a source is immutable once made. What it reads must stay still meanwhile.
// Memory: the caller's scratch, of the tile's size at least.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "delta/tile.h"
#include "io/env.h"

namespace lathe::delta {

class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // hash_tile of the tile.
  virtual Result<Hash128> hash(TileId id, std::span<std::byte> scratch) const = 0;
  // Of many, several at once. A GPU's weights are hashed where they are, so that only changed tiles cross the bus.
  virtual Result<std::vector<Hash128>> hash_all(std::span<const TileId> tiles, int threads) const;
  // The tile's bytes, in `scratch` or wherever they stay put until the next call with the same scratch.
  virtual Result<std::span<const std::byte>> read(TileId id, std::span<std::byte> scratch) const = 0;
};

// Files in a directory, read as they are. Not the hashes of `state`, which says only how they are cut.
class FileSource final : public WeightSource {
 public:
  // kCorruption if a file has another size than in `state`; `state` must outlive the source.
  static Result<FileSource> open(io::Env& env, const std::string& directory, const WeightState& state);

  Result<Hash128> hash(TileId id, std::span<std::byte> scratch) const override;
  Result<std::span<const std::byte>> read(TileId id, std::span<std::byte> scratch) const override;

 private:
  explicit FileSource(const WeightState& state) : state_(&state) {}

  const WeightState* state_;
  std::vector<std::unique_ptr<io::RandomAccessFile>> files_;
};

// A stretch of a tensor: bytes.
struct TensorRange {
  std::string_view tensor;
  uint64_t offset = 0, size = 0;
};

// Named tensors, wherever their bytes are.
class TensorReader {
 public:
  virtual ~TensorReader() = default;
  // Bytes; nothing if there is no such tensor: it then stays as it is on disk.
  virtual std::optional<uint64_t> size(std::string_view tensor) const = 0;
  virtual Status read(std::string_view tensor, uint64_t offset, std::span<std::byte> out) const = 0;

  // Can it hash tensors without copying their bytes to this process's memory? Then hash_tiles() gives hash_tile() of
  // each tile, the concatenation of its ranges.
  virtual bool hashes_in_place() const { return false; }
  virtual Result<std::vector<Hash128>> hash_tiles(std::span<const std::vector<TensorRange>> tiles) const;
};

// The files of a directory with the bytes of tensors replaced by those of a reader.
class TensorSource final : public WeightSource {
 public:
  // kInvalidArgument, naming it, if a tensor has another size than in the files. All arguments outlive the source.
  static Result<TensorSource> open(io::Env& env, const std::string& directory, const WeightState& state,
                                   const TensorReader& tensors);

  Result<Hash128> hash(TileId id, std::span<std::byte> scratch) const override;
  Result<std::vector<Hash128>> hash_all(std::span<const TileId> tiles, int threads) const override;
  Result<std::span<const std::byte>> read(TileId id, std::span<std::byte> scratch) const override;

 private:
  // A tensor's place in a file; ascending.
  struct Piece {
    uint64_t begin = 0, end = 0;  // in the file
    std::string tensor;
    bool replaced = false;  // by the reader's bytes
  };
  // Those that a tile touches, ascending.
  std::span<const Piece> pieces_of(TileId id) const;
  // What a tile is made of, if that is the reader's tensors only.
  std::vector<TensorRange> ranges_of(TileId id) const;

  TensorSource(FileSource files, const WeightState& state, const TensorReader& tensors)
      : files_(std::move(files)), state_(&state), tensors_(&tensors) {}

  FileSource files_;
  const WeightState* state_;
  const TensorReader* tensors_;
  std::vector<std::vector<Piece>> pieces_;  // per file
};

// Progress of a long operation: `done` of `total` bytes of a phase ("comparing"). May be empty. Called from the
// caller's thread.
using Progress = std::function<void(std::string_view phase, uint64_t done, uint64_t total)>;

// The tiles whose hash in `source` is not that of `state`, of those from `begin` on, `count` of them at most looked at.
// Tiles are counted through all files. Advances `begin`.
Result<std::vector<TileId>> changed_tiles(const WeightSource& source, const WeightState& state, size_t count,
                                          int threads, size_t& begin);

}  // namespace lathe::delta
