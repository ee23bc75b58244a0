// A delta file: the difference between two states of the same files, tile by tile, applicable in both directions.
//
// Why: a step of training moves nearly every 4 KiB of the weights, but each weight by few of its own units in the last
// place; coded as such steps, given the exponent of the old value, ten minutes of training are a few per cent of the
// model. Tiles that did not change cost nothing. Every tile names the hash of its bytes before and after, so applying
// one is idempotent and never lands on a wrong base:
//   hash == after: skip;  hash == before: decode, check, write;  else: stop and name the tile.
// Files keep name, size and layout across a delta; whatever else belongs to a version travels as an attachment.
//
// Threads: a DeltaWriter belongs to one thread, and add() works on several. A DeltaReader is immutable; any thread.
// Memory: DeltaWriter: about 40 MiB per thread, whatever the model's size, and its state. DeltaReader: 80 bytes per
// changed tile and the layouts; per thread that decodes, about 12 MiB.
// Durability: none here: the caller writes to a temporary file, syncs, renames (docs/formats/directory.md).
// Format page: docs/formats/delta.md
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/hash.h"
#include "checkpoint/tile.h"
#include "checkpoint/tile_codec.h"
#include "io/env.h"

namespace lathe::checkpoint {

struct DeltaTile {
  TileId id;
  TileMode mode = TileMode::kRaw;
  uint64_t offset = 0;        // of the payload in the delta file
  uint64_t payload_size = 0;  // bytes
  Hash128 before, after;      // hash_tile of the tile's bytes in either state
  uint64_t payload_checksum = 0;
};

struct DeltaAttachment {
  std::string name;
  uint64_t offset = 0;  // in the delta file
  uint64_t size = 0;
  Hash128 checksum;
};

struct DeltaInfo {
  int64_t from_version = 0, to_version = 0;
  int64_t time_ms = 0;  // when the new state was taken: milliseconds since 1970, UTC
  Root from_root, to_root;
};

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

class DeltaReader {
 public:
  // Reads and checks header, footer and index: all of the file but payloads and attachments. kCorruption, naming what
  // contradicts itself; kUnsupported for a newer format. Nothing is allocated that the file's size does not justify.
  static Result<DeltaReader> open(std::unique_ptr<io::RandomAccessFile> file);
  static Result<DeltaReader> open(io::Env& env, const std::string& path);  // errors name `path`
  DeltaReader(DeltaReader&&) noexcept;
  DeltaReader& operator=(DeltaReader&&) noexcept;
  ~DeltaReader();

  const DeltaInfo& info() const { return info_; }
  const std::vector<FileLayout>& files() const { return files_; }
  std::span<const DeltaTile> tiles() const { return tiles_; }  // ascending
  const DeltaTile* find(TileId id) const;                      // null: unchanged
  std::span<const DeltaAttachment> attachments() const { return attachments_; }
  const DeltaAttachment* find_attachment(std::string_view name) const;
  uint64_t file_bytes() const { return file_bytes_; }

  // Turns `known`, the tile's bytes in the state that `direction` leaves, into those of the other state; `out` has the
  // same size and may not overlap. Checks the payload's checksum, the hash of `known` (kConflict if it is another
  // state's) and the hash of what comes out.
  Status decode(const DeltaTile& tile, Direction direction, std::span<const std::byte> known,
                std::span<std::byte> out) const;
  // The same without hashing `known`, for a caller that just has.
  Status decode_known(const DeltaTile& tile, Direction direction, std::span<const std::byte> known,
                      std::span<std::byte> out) const;

  // The state on the other side of `state`. kConflict, naming the file or tile, if this delta does not leave it.
  Result<WeightState> follow(const WeightState& state, Direction direction) const;

  // Checksummed, in pieces of at most 1 MiB. `sink` has seen all bytes before a mismatch is known.
  Status read_attachment(const DeltaAttachment& attachment,
                         const std::function<Status(std::span<const std::byte>)>& sink) const;
  // Whole, for small ones. kInvalidArgument beyond `limit` bytes.
  Result<std::string> attachment_text(const DeltaAttachment& attachment, uint64_t limit = uint64_t{64} << 20) const;

  // Checks every payload and attachment against its checksum. What it means for tiles is checked by decode().
  Status verify() const;

 private:
  struct Codecs;

  DeltaReader();
  std::string describe(TileId id) const;
  Result<std::vector<std::byte>> payload(const DeltaTile& tile) const;

  std::unique_ptr<io::RandomAccessFile> file_;
  std::unique_ptr<Codecs> codecs_;
  DeltaInfo info_;
  uint32_t format_ = 0;  // version of the file's format
  uint64_t file_bytes_ = 0;
  std::vector<FileLayout> files_;
  std::vector<DeltaTile> tiles_;
  std::vector<DeltaAttachment> attachments_;
};

}  // namespace lathe::checkpoint
