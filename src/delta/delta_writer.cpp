#include "delta/delta_writer.h"

#include <algorithm>
#include <cstring>

#include "base/parallel.h"
#include "codec/bytes.h"

namespace lathe::delta {
namespace {

using namespace delta_format;

constexpr size_t kBatchPerThread = 8;  // tiles encoded before their payloads are written, in order

struct Encoded {
  bool changed = false;
  DeltaTile tile;
  std::span<const std::byte> payload;
};

// What one thread needs to encode a tile.
struct Worker {
  codec::TileCodec codec;
  std::vector<std::byte> before, after, decoded;  // as large as the largest tile so far

  void make_room(uint64_t size) {
    if (size <= before.size()) return;
    for (auto* buffer : {&before, &after, &decoded}) buffer->resize(size);
  }
};

// Of the same size. std::equal compares std::byte one by one.
bool same_bytes(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0;
}

std::vector<std::byte> format_header(const WeightState& from, const DeltaOptions& options) {
  std::vector<std::byte> out;
  codec::append(out, kMagic);
  codec::append(out, kVersion);
  codec::append(out, uint32_t{0});  // the size, filled in below
  codec::append(out, options.from_version);
  codec::append(out, options.to_version);
  codec::append(out, options.time_ms);
  codec::append(out, static_cast<uint32_t>(from.files.size()));
  codec::append(out, uint32_t{0});
  for (const FileState& file : from.files) {
    codec::append_text(out, file.layout.name);
    codec::append(out, file.layout.size);
    codec::append(out, file.layout.data_offset);
    codec::append(out, static_cast<uint32_t>(file.layout.runs.size()));
    for (const TypeRun& run : file.layout.runs) {
      codec::append(out, run.end);
      codec::append(out, run.type);
    }
  }
  const auto size = static_cast<uint32_t>(out.size() + sizeof(uint64_t));
  std::memcpy(out.data() + sizeof(kMagic) + sizeof(kVersion), &size, sizeof(size));
  codec::append(out, checksum64(out));
  return out;
}

}  // namespace

struct DeltaWriter::Impl {
  io::WritableFile& file;
  WeightState state;
  DeltaOptions options;
  DeltaReport report;
  std::vector<Worker> workers;
  std::vector<std::vector<std::byte>> payloads;  // of a batch; kept, since fresh memory costs a page fault per 4 KiB
  std::vector<DeltaTile> tiles;
  std::vector<DeltaAttachment> attachments;
  std::optional<Checksum128> attachment_hash;  // of the open attachment, the last of the list
  uint64_t header_checksum = 0;
  uint64_t written = 0;
  std::optional<TileId> last_added;
  bool finished = false;

  Impl(io::WritableFile& target, WeightState from, const DeltaOptions& delta_options)
      : file(target), state(std::move(from)), options(delta_options), workers(thread_count(delta_options.threads)) {}

  Status write(std::span<const std::byte> bytes) {
    LATHE_TRY(file.append(bytes));
    written += bytes.size();
    return {};
  }

  Result<Encoded> encode(TileId id, const TileLoader& load, Worker& worker, std::vector<std::byte>& payload) const;
  Status verify(std::span<const codec::TilePart> parts, const TileBytes& bytes, const Encoded& encoded,
                Worker& worker) const;
  Status take(Encoded& encoded);
  void end_attachment();
};

Status DeltaWriter::Impl::verify(std::span<const codec::TilePart> parts, const TileBytes& bytes, const Encoded& encoded,
                                 Worker& worker) const {
  const auto same = [&](codec::Direction direction, std::span<const std::byte> known,
                        std::span<const std::byte> wanted) {
    const std::span out(worker.decoded.data(), known.size());
    return worker.codec.decode(parts, direction, known, encoded.payload, out).ok() && same_bytes(out, wanted);
  };
  if (same(codec::Direction::kForward, bytes.before, bytes.after) &&
      same(codec::Direction::kBackward, bytes.after, bytes.before))
    return {};
  return internal(state.describe(encoded.tile.id) +
                  " does not decode to what was encoded: faulty memory, weights that change meanwhile, or a bug");
}

Result<Encoded> DeltaWriter::Impl::encode(TileId id, const TileLoader& load, Worker& worker,
                                          std::vector<std::byte>& payload) const {
  const FileState& tile_file = state.files[id.file];
  const uint64_t size = tile_range(tile_file.layout, id.tile).size;
  worker.make_room(size);
  const TileBytes bytes = LATHE_TRY(load(id, worker.before, worker.after));
  if (bytes.before.size() != size || bytes.after.size() != size)
    return invalid_argument(state.describe(id) + " was given a different number of bytes");
  const auto [hash_before, hash_after] = hash_tiles(bytes.before, bytes.after);
  Encoded encoded{.tile = {.id = id, .before = hash_before, .after = hash_after}};
  if (encoded.tile.before != tile_file.tiles[id.tile])
    return Error{Code::kConflict, state.describe(id) + " no longer has the bytes that the delta starts from"};
  if (hash_before == hash_after) return encoded;
  encoded.changed = true;
  const std::vector<codec::TilePart> parts = tile_parts(tile_file.layout, id.tile);
  payload.clear();
  encoded.tile.mode = worker.codec.encode(parts, bytes.before, bytes.after, payload);
  encoded.payload = payload;
  if (options.verify) LATHE_TRY(verify(parts, bytes, encoded, worker));
  encoded.tile.payload_size = encoded.payload.size();
  encoded.tile.payload_checksum = checksum64(encoded.payload);
  return encoded;
}

// The next tile in order.
Status DeltaWriter::Impl::take(Encoded& encoded) {
  const TileId id = encoded.tile.id;
  report.bytes_compared += tile_range(state.files[id.file].layout, id.tile).size;
  if (!encoded.changed) return {};
  encoded.tile.offset = written;
  LATHE_TRY(write(encoded.payload));
  state.files[id.file].tiles[id.tile] = encoded.tile.after;
  ++report.tiles_by_mode[static_cast<size_t>(encoded.tile.mode)];
  ++report.tiles_changed;
  tiles.push_back(encoded.tile);
  return {};
}

void DeltaWriter::Impl::end_attachment() {
  if (!attachment_hash) return;
  attachments.back().checksum = attachment_hash->finish();
  attachment_hash.reset();
}

DeltaWriter::DeltaWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeltaWriter::DeltaWriter(DeltaWriter&&) noexcept = default;
DeltaWriter::~DeltaWriter() = default;

Result<DeltaWriter> DeltaWriter::create(io::WritableFile& file, WeightState from, const DeltaOptions& options) {
  LATHE_TRY(check(from));
  auto impl = std::make_unique<Impl>(file, std::move(from), options);
  impl->report.info = {.from_version = options.from_version,
                       .to_version = options.to_version,
                       .time_ms = options.time_ms,
                       .from_root = impl->state.root()};
  const std::vector<std::byte> header = format_header(impl->state, options);
  std::memcpy(&impl->header_checksum, &header[header.size() - sizeof(uint64_t)], sizeof(uint64_t));
  LATHE_TRY(impl->write(header));
  return DeltaWriter(std::move(impl));
}

Status DeltaWriter::add(std::span<const TileId> tiles, const TileLoader& load) {
  if (!impl_->attachments.empty() || impl_->finished)
    return invalid_argument("a delta's tiles come before its attachments");
  const size_t threads = impl_->workers.size();
  std::vector<std::optional<Encoded>> batch;
  for (size_t begin = 0; begin < tiles.size(); begin += batch.size()) {
    batch.assign(std::min(tiles.size() - begin, kBatchPerThread * threads), std::nullopt);
    if (impl_->payloads.size() < batch.size()) impl_->payloads.resize(batch.size());
    for (size_t i = begin; i < begin + batch.size(); ++i) {
      const TileId id = tiles[i];
      if (id.file >= impl_->state.files.size() || id.tile >= impl_->state.files[id.file].tiles.size())
        return invalid_argument("there is no " + impl_->state.describe(id));
      if (impl_->last_added && id <= *impl_->last_added)
        return invalid_argument("the tiles of a delta must ascend: " + impl_->state.describe(id) + " does not");
      impl_->last_added = id;
    }
    const auto encode = [&](size_t i, size_t worker) -> Status {
      batch[i] = LATHE_TRY(impl_->encode(tiles[begin + i], load, impl_->workers[worker], impl_->payloads[i]));
      return {};
    };
    LATHE_TRY(parallel_for(batch.size(), threads, encode));
    for (auto& encoded : batch) LATHE_TRY(impl_->take(*encoded));
  }
  return {};
}

Status DeltaWriter::add_all(const TileLoader& load) {
  std::vector<TileId> all;
  for (uint32_t file = 0; file < impl_->state.files.size(); ++file) {
    for (uint32_t tile = 0; tile < impl_->state.files[file].tiles.size(); ++tile) all.push_back({file, tile});
  }
  return add(all, load);
}

Status DeltaWriter::begin_attachment(std::string_view name) {
  if (impl_->finished) return invalid_argument("the delta is finished");
  impl_->end_attachment();
  for (const DeltaAttachment& other : impl_->attachments) {
    if (other.name == name) return invalid_argument("the delta already has an attachment " + std::string(name));
  }
  impl_->attachments.push_back({.name = std::string(name), .offset = impl_->written});
  impl_->attachment_hash.emplace();
  return {};
}

Status DeltaWriter::append_attachment(std::span<const std::byte> bytes) {
  if (!impl_->attachment_hash) return invalid_argument("no attachment has begun");
  LATHE_TRY(impl_->write(bytes));
  impl_->attachment_hash->update(bytes);
  impl_->attachments.back().size += bytes.size();
  return {};
}

Status DeltaWriter::attach(std::string_view name, std::span<const std::byte> bytes) {
  LATHE_TRY(begin_attachment(name));
  return append_attachment(bytes);
}

const WeightState& DeltaWriter::state() const {
  return impl_->state;
}

Result<DeltaReport> DeltaWriter::finish() {
  if (impl_->finished) return invalid_argument("the delta is finished");
  impl_->finished = true;
  impl_->end_attachment();
  std::vector<std::byte> index, footer;
  TileId previous;
  for (const DeltaTile& tile : impl_->tiles) {
    codec::append_varint(index, tile.id.file - previous.file);
    codec::append_varint(index, tile.id.file == previous.file ? tile.id.tile - previous.tile : tile.id.tile);
    codec::append_varint(index, tile.payload_size);
    codec::append(index, tile.mode);
    previous = tile.id;
    codec::append(index, tile.before);
    codec::append(index, tile.after);
    codec::append(index, tile.payload_checksum);
  }
  for (const DeltaAttachment& attachment : impl_->attachments) {
    codec::append_text(index, attachment.name);
    codec::append(index, attachment.size);
    codec::append(index, attachment.checksum);
  }
  DeltaReport& report = impl_->report;
  report.info.to_root = impl_->state.root();
  report.file_bytes = impl_->written + index.size() + kFooterSize;
  codec::append(footer, uint64_t{impl_->tiles.size()});
  codec::append(footer, uint64_t{impl_->attachments.size()});
  codec::append(footer, impl_->written);
  codec::append(footer, report.file_bytes);
  codec::append(footer, report.info.from_root.bytes);
  codec::append(footer, report.info.to_root.bytes);
  codec::append(footer, impl_->header_checksum);
  codec::append(footer, checksum64(index));
  codec::append(footer, checksum64(footer));
  codec::append(footer, kEndMagic);
  LATHE_TRY(impl_->write(index));
  LATHE_TRY(impl_->write(footer));
  return report;
}

}  // namespace lathe::delta
