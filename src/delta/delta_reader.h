// DeltaReader: what a delta file (delta_format.h) says, checked; turns either state of a tile into the other.
//
// Threads: immutable; any thread.
// Memory: 80 bytes per changed tile and the layouts; per thread that decodes, about 12 MiB.
// Format page: docs/formats/delta.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "delta/delta_format.h"
#include "delta/tile.h"
#include "io/env.h"

namespace lathe::delta {

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
  Status decode(const DeltaTile& tile, codec::Direction direction, std::span<const std::byte> known,
                std::span<std::byte> out) const;
  // The same without hashing `known`, for a caller that just has.
  Status decode_known(const DeltaTile& tile, codec::Direction direction, std::span<const std::byte> known,
                      std::span<std::byte> out) const;

  // The state on the other side of `state`. kConflict, naming the file or tile, if this delta does not leave it.
  Result<WeightState> follow(const WeightState& state, codec::Direction direction) const;

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

}  // namespace lathe::delta
