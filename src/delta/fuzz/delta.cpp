// Fuzz target: a delta file, opened, followed and decoded.
//
// Checksums would reject nearly every damaged input at once, so the input is first sealed: magic numbers, sizes and
// checksums of header, index and footer are corrected; what they cover stays as it is. Then payloads are decoded
// without checking theirs. Whatever the bytes are, each step returns a result or an error; a decoded state must be one
// that the codec can encode and decode exactly.
#include <algorithm>
#include <cstring>
#include <memory>

#include "codec/bytes.h"
#include "delta/delta_format.h"
#include "delta/delta_reader.h"
#include "delta/delta_writer.h"
#include "delta/test_files.h"

namespace {

using namespace lathe;
using namespace lathe::delta;
using namespace lathe::delta::delta_format;

constexpr size_t kTilesDecoded = 4;

template <class Value>
Value get(const codec::Bytes& bytes, size_t at) {
  Value value;
  std::memcpy(&value, &bytes[at], sizeof(Value));
  return value;
}
template <class Value>
void put(codec::Bytes& bytes, size_t at, Value value) {
  std::memcpy(&bytes[at], &value, sizeof(Value));
}
uint64_t checksum(const codec::Bytes& bytes, size_t begin, size_t end) {
  return checksum64(std::span(bytes).subspan(begin, end - begin));
}

// `value` if it is possible, else some value that is.
size_t within(uint64_t value, size_t least, size_t most) {
  return value >= least && value <= most ? value : least + value % (most - least + 1);
}

// Makes right whatever only says that the rest is right. The input stays as it is if it has no room for that.
void seal(codec::Bytes& file) {
  constexpr size_t kHeader = 56;
  if (file.size() < kHeader + kFooterSize) return;
  const size_t footer = file.size() - kFooterSize;
  put(file, 0, kMagic);
  if (get<uint32_t>(file, 8) != kOldestVersion) put(file, 8, kVersion);
  const size_t header = within(get<uint32_t>(file, 12), kHeader, footer);
  put(file, 12, static_cast<uint32_t>(header));
  put(file, header - 8, checksum(file, 0, header - 8));
  const size_t index = within(get<uint64_t>(file, footer + 16), header, footer);
  put(file, footer + 16, uint64_t{index});
  put(file, footer + 24, uint64_t{file.size()});
  put(file, footer + 96, get<uint64_t>(file, header - 8));
  put(file, footer + 104, checksum(file, index, footer));
  put(file, footer + 112, checksum(file, footer, footer + 112));
  put(file, footer + 120, kEndMagic);
}

// Bytes that look like weights: what a payload is decoded onto.
std::span<const std::byte> known_bytes(size_t size) {
  static const codec::TrainedWeights weights(kTileBytes / 2, 0.02, 1e-4, 1);
  return std::as_bytes(std::span(weights.before)).first(size);
}

// Whatever `after` is, what the codec makes of it leads there and back.
void check_round_trip(const std::vector<codec::TilePart>& parts, std::span<const std::byte> before,
                      std::span<const std::byte> after) {
  codec::TileCodec codec;
  codec::Bytes payload, out(before.size());
  codec.encode(parts, before, after, payload);
  LATHE_CHECK(payload.size() <= before.size() + parts.size());
  LATHE_CHECK(codec.decode(parts, codec::Direction::kForward, before, payload, out).ok());
  LATHE_CHECK(std::equal(out.begin(), out.end(), after.begin(), after.end()));
  LATHE_CHECK(codec.decode(parts, codec::Direction::kBackward, after, payload, out).ok());
  LATHE_CHECK(std::equal(out.begin(), out.end(), before.begin(), before.end()));
}

void check_tile(const DeltaReader& delta, const DeltaTile& tile, const codec::Bytes& file) {
  const FileLayout& layout = delta.files()[tile.id.file];
  const uint64_t size = tile_range(layout, tile.id.tile).size;
  LATHE_CHECK(size > 0 && size <= kTileBytes);
  const auto parts = tile_parts(layout, tile.id.tile);
  uint64_t covered = 0;
  for (const codec::TilePart& part : parts) {
    LATHE_CHECK(part.offset == covered && part.size > 0 && part.size % codec::element_size(part.type) == 0);
    covered += part.size;
  }
  LATHE_CHECK(covered == size);
  const auto known = known_bytes(size),
             payload = std::span<const std::byte>(file).subspan(tile.offset, tile.payload_size);
  codec::TileCodec codec;
  codec::Bytes out(size);
  for (uint32_t format = kOldestVersion; format <= kVersion; ++format) {
    if (codec.decode(parts, codec::Direction::kForward, known, payload, out, format).ok())
      check_round_trip(parts, known, out);
    if (codec.decode(parts, codec::Direction::kBackward, known, payload, out, format).ok())
      check_round_trip(parts, out, known);
  }
  // With all its checks it accepts only the bytes that it promises.
  if (delta.decode(tile, codec::Direction::kForward, known, out).ok()) LATHE_CHECK(hash_tile(out) == tile.after);
}

// A state that the delta leaves, if there is one: of the tiles that it does not change, nothing is known.
void check_follow(const DeltaReader& delta) {
  WeightState state;
  uint64_t tiles = 0;
  for (const FileLayout& layout : delta.files()) {
    tiles += tile_count(layout);
    if (tiles > 1000) return;
    state.files.push_back({.layout = layout, .tiles = std::vector<Hash128>(tile_count(layout))});
  }
  for (const DeltaTile& tile : delta.tiles()) {
    LATHE_CHECK(delta.find(tile.id) == &tile);
    state.files[tile.id.file].tiles[tile.id.tile] = tile.before;
  }
  const auto next = delta.follow(state, codec::Direction::kForward);
  if (next.ok()) LATHE_CHECK(next->root() == delta.info().to_root);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  codec::Bytes file(size);
  if (size > 0) std::memcpy(file.data(), bytes, size);
  seal(file);
  const auto delta = open_bytes(file);
  if (!delta.ok()) {
    LATHE_CHECK(!delta.error().message.empty());
    return 0;
  }
  LATHE_CHECK(delta->file_bytes() == size);
  for (size_t i = 0; i < std::min(delta->tiles().size(), kTilesDecoded); ++i) {
    check_tile(*delta, delta->tiles()[i], file);
  }
  for (const DeltaAttachment& attachment : delta->attachments()) {
    const auto text = delta->attachment_text(attachment);
    LATHE_CHECK(!text.ok() || text->size() == attachment.size);
  }
  check_follow(*delta);
  return 0;
}
