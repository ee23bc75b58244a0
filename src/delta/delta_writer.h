// DeltaWriter: compares two states of the same files and writes their difference as a delta file (delta_format.h).
//
// Threads: a DeltaWriter belongs to one thread; add() works on several.
// Memory: about 40 MiB per thread, whatever the model's size, and its state.
// Durability: none here: the caller writes to a temporary file, syncs, renames (docs/formats/directory.md).
// Format page: docs/formats/delta.md
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "base/result.h"
#include "delta/delta_format.h"
#include "delta/tile.h"
#include "io/env.h"

namespace lathe::delta {

struct DeltaOptions {
  int64_t from_version = 0, to_version = 0;
  int64_t time_ms = 0;
  int threads = 0;  // 0: as many as the machine has
  bool verify =
      true;  // decode each tile in both directions before it is written: against a codec's or a memory's fault
};

struct DeltaReport {
  DeltaInfo info;
  uint64_t file_bytes = 0;  // the whole delta
  uint64_t tiles_changed = 0;
  uint64_t bytes_compared = 0;
  std::array<uint64_t, 4> tiles_by_mode{};
};

// Both sides of one tile, tile_range().size bytes each.
struct TileBytes {
  std::span<const std::byte> before, after;
};

// Yields a tile's bytes, either in `scratch_before` / `scratch_after` (of its size at least) or anywhere else that
// stays put until the next call with the same scratch. Called from several threads at once.
using TileLoader = std::function<Result<TileBytes>(TileId id, std::span<std::byte> scratch_before,
                                                   std::span<std::byte> scratch_after)>;

class DeltaWriter {
 public:
  // Writes the header. `from` is the state before; kInvalidArgument if it contradicts itself.
  static Result<DeltaWriter> create(io::WritableFile& file, WeightState from, const DeltaOptions& options);
  DeltaWriter(DeltaWriter&&) noexcept;
  ~DeltaWriter();

  // Compares and encodes `tiles`, which ascend and follow all tiles added before. A tile that is not added is taken as
  // unchanged. kConflict, naming the tile, if its bytes before do not have the hash that `from` gives them.
  Status add(std::span<const TileId> tiles, const TileLoader& load);
  // Every tile of every file.
  Status add_all(const TileLoader& load);

  // Attachments follow the tiles. Contents come in any number of pieces; begin ends the attachment before.
  Status begin_attachment(std::string_view name);
  Status append_attachment(std::span<const std::byte> bytes);
  Status attach(std::string_view name, std::span<const std::byte> bytes);

  // The state after, as added so far.
  const WeightState& state() const;

  // Writes index and footer. The file is complete but not synced.
  Result<DeltaReport> finish();

 private:
  struct Impl;
  explicit DeltaWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lathe::delta
