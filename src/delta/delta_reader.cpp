#include "delta/delta_reader.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "codec/bytes.h"

namespace lathe::delta {
namespace {

using namespace delta_format;

constexpr uint64_t kPiece = uint64_t{1} << 20;  // of an attachment, as it is read
constexpr uint64_t kMinimumHeader = 56;

Error conflict(std::string message) {
  return {Code::kConflict, std::move(message)};
}

struct Footer {
  uint64_t tiles = 0, attachments = 0, index_offset = 0, file_size = 0;
  Root from_root, to_root;
  uint64_t header_checksum = 0, index_checksum = 0, checksum = 0, magic = 0;
};
static_assert(sizeof(Footer) == kFooterSize);

Result<std::vector<std::byte>> read(const io::RandomAccessFile& file, uint64_t offset, uint64_t size) {
  std::vector<std::byte> bytes(size);
  LATHE_TRY(file.read_at(offset, bytes));
  return bytes;
}

Result<Footer> read_footer(const io::RandomAccessFile& file) {
  if (file.size() < kMinimumHeader + kFooterSize) return corruption("too short for a delta file");
  const std::vector<std::byte> bytes = LATHE_TRY(read(file, file.size() - kFooterSize, kFooterSize));
  Footer footer;
  std::memcpy(&footer, bytes.data(), kFooterSize);
  if (footer.magic != kEndMagic) return corruption("it does not end as a delta file does: truncated, or not one");
  if (footer.checksum != checksum64(std::span(bytes).first(kFooterSize - 16)))
    return corruption("its footer is damaged");
  if (footer.file_size != file.size())
    return corruption("it has " + std::to_string(file.size()) + " bytes, and its footer says " +
                      std::to_string(footer.file_size));
  if (footer.index_offset < kMinimumHeader || footer.index_offset > file.size() - kFooterSize)
    return corruption("its footer gives an impossible position of the index");
  return footer;
}

// The header's bytes after magic, version and size, without the checksum.
Result<std::vector<std::byte>> read_header(const io::RandomAccessFile& file, const Footer& footer,
                                           uint64_t& header_size, uint32_t& version) {
  const std::vector<std::byte> start = LATHE_TRY(read(file, 0, 16));
  std::span<const std::byte> in(start);
  if (LATHE_TRY(codec::take<uint64_t>(in)) != kMagic) return corruption("it does not begin as a delta file does");
  version = LATHE_TRY(codec::take<uint32_t>(in));
  header_size = LATHE_TRY(codec::take<uint32_t>(in));
  if (header_size < kMinimumHeader || header_size > footer.index_offset)
    return corruption("its header has an impossible size");
  std::vector<std::byte> header = LATHE_TRY(read(file, 0, header_size));
  const uint64_t checksum = checksum64(std::span(header).first(header_size - 8));
  if (checksum != footer.header_checksum || std::memcmp(&header[header_size - 8], &checksum, 8) != 0)
    return corruption("its header is damaged");
  if (version < kOldestVersion || version > kVersion)
    return unsupported("it is of format version " + std::to_string(version) + "; this program reads versions " +
                       std::to_string(kOldestVersion) + " to " + std::to_string(kVersion));
  header.resize(header_size - 8);
  header.erase(header.begin(), header.begin() + 16);
  return header;
}

Result<FileLayout> take_layout(std::span<const std::byte>& in) {
  FileLayout layout;
  layout.name = LATHE_TRY(codec::take_text(in));
  layout.size = LATHE_TRY(codec::take<uint64_t>(in));
  layout.data_offset = LATHE_TRY(codec::take<uint64_t>(in));
  const auto runs = LATHE_TRY(codec::take<uint32_t>(in));
  for (uint32_t i = 0; i < runs; ++i) {
    TypeRun run;
    run.end = LATHE_TRY(codec::take<uint64_t>(in));
    run.type = LATHE_TRY(codec::take<codec::ElementType>(in));
    layout.runs.push_back(run);
  }
  LATHE_TRY(check(layout));
  return layout;
}

Result<std::vector<FileLayout>> take_layouts(std::span<const std::byte>& in) {
  const auto count = LATHE_TRY(codec::take<uint32_t>(in)), zero = LATHE_TRY(codec::take<uint32_t>(in));
  if (zero != 0) return corruption("a reserved field is not zero");
  std::vector<FileLayout> files;
  for (uint32_t i = 0; i < count; ++i) {
    files.push_back(LATHE_TRY(take_layout(in)));
    if (i > 0 && files[i - 1].name >= files[i].name) return corruption("its files do not ascend by name");
  }
  if (!in.empty()) return corruption("there are bytes after its list of files");
  return files;
}

Result<DeltaTile> take_tile(std::span<const std::byte>& in, TileId previous, const std::vector<FileLayout>& files) {
  DeltaTile tile;
  const uint64_t file_step = LATHE_TRY(codec::take_varint(in)), tile_step = LATHE_TRY(codec::take_varint(in));
  tile.payload_size = LATHE_TRY(codec::take_varint(in));
  tile.mode = LATHE_TRY(codec::take<codec::TileMode>(in));
  tile.before = LATHE_TRY(codec::take<Hash128>(in));
  tile.after = LATHE_TRY(codec::take<Hash128>(in));
  tile.payload_checksum = LATHE_TRY(codec::take<uint64_t>(in));
  const uint64_t file = previous.file + file_step, number = file_step == 0 ? previous.tile + tile_step : tile_step;
  if (file >= files.size() || number >= tile_count(files[file]))
    return corruption("its index names a tile that its files do not have");
  tile.id = {.file = static_cast<uint32_t>(file), .tile = static_cast<uint32_t>(number)};
  if (tile.mode < codec::TileMode::kSparse || tile.mode > codec::TileMode::kRaw)
    return corruption("its index has a tile of an unknown mode");
  return tile;
}

}  // namespace

// Codecs keep their buffers between tiles; as many as threads decode at once.
struct DeltaReader::Codecs {
  std::mutex mutex;
  std::vector<std::unique_ptr<codec::TileCodec>> idle;

  std::unique_ptr<codec::TileCodec> take() {
    const std::lock_guard lock(mutex);
    if (idle.empty()) return std::make_unique<codec::TileCodec>();
    auto codec = std::move(idle.back());
    idle.pop_back();
    return codec;
  }
  void give(std::unique_ptr<codec::TileCodec> codec) {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(codec));
  }
};

DeltaReader::DeltaReader() : codecs_(std::make_unique<Codecs>()) {}
DeltaReader::DeltaReader(DeltaReader&&) noexcept = default;
DeltaReader& DeltaReader::operator=(DeltaReader&&) noexcept = default;
DeltaReader::~DeltaReader() = default;

Result<DeltaReader> DeltaReader::open(io::Env& env, const std::string& path) {
  auto file = LATHE_TRY(env.open_read(path));
  return open(std::move(file)).at(path);
}

Result<DeltaReader> DeltaReader::open(std::unique_ptr<io::RandomAccessFile> file) {
  DeltaReader reader;
  reader.file_ = std::move(file);
  reader.file_bytes_ = reader.file_->size();
  const Footer footer = LATHE_TRY(read_footer(*reader.file_));
  uint64_t offset = 0;  // first of the header's end, then of the next payload
  const std::vector<std::byte> header = LATHE_TRY(read_header(*reader.file_, footer, offset, reader.format_));
  std::span<const std::byte> in(header);
  reader.info_.from_version = LATHE_TRY(codec::take<int64_t>(in));
  reader.info_.to_version = LATHE_TRY(codec::take<int64_t>(in));
  reader.info_.time_ms = LATHE_TRY(codec::take<int64_t>(in));
  reader.info_.from_root = footer.from_root;
  reader.info_.to_root = footer.to_root;
  reader.files_ = LATHE_TRY(take_layouts(in));

  const uint64_t index_size = reader.file_bytes_ - kFooterSize - footer.index_offset;
  const std::vector<std::byte> index = LATHE_TRY(read(*reader.file_, footer.index_offset, index_size));
  if (checksum64(index) != footer.index_checksum) return corruption("its index is damaged");
  in = index;
  if (footer.tiles > index_size / kLeastTileEntry || footer.attachments > index_size)
    return corruption("its footer counts more entries than its index has");
  for (uint64_t i = 0; i < footer.tiles; ++i) {
    const TileId previous = i == 0 ? TileId{} : reader.tiles_.back().id;
    DeltaTile tile = LATHE_TRY(take_tile(in, previous, reader.files_));
    if (i > 0 && tile.id <= previous) return corruption("the tiles of its index do not ascend");
    if (tile.payload_size > footer.index_offset - offset) return corruption("its payloads are larger than the file");
    tile.offset = offset;
    offset += tile.payload_size;
    reader.tiles_.push_back(tile);
  }
  for (uint64_t i = 0; i < footer.attachments; ++i) {
    DeltaAttachment attachment{.name = std::string(LATHE_TRY(codec::take_text(in))), .offset = offset};
    attachment.size = LATHE_TRY(codec::take<uint64_t>(in));
    attachment.checksum = LATHE_TRY(codec::take<Hash128>(in));
    if (attachment.size > footer.index_offset - offset)
      return corruption("attachment " + attachment.name + " is larger than the file");
    if (reader.find_attachment(attachment.name) != nullptr)
      return corruption("it has two attachments " + attachment.name);
    offset += attachment.size;
    reader.attachments_.push_back(std::move(attachment));
  }
  if (!in.empty() || offset != footer.index_offset)
    return corruption("its index does not account for every byte of it");
  return reader;
}

const DeltaTile* DeltaReader::find(TileId id) const {
  const auto at = std::lower_bound(tiles_.begin(), tiles_.end(), id,
                                   [](const DeltaTile& tile, TileId wanted) { return tile.id < wanted; });
  return at != tiles_.end() && at->id == id ? &*at : nullptr;
}

const DeltaAttachment* DeltaReader::find_attachment(std::string_view name) const {
  const auto at =
      std::find_if(attachments_.begin(), attachments_.end(), [&](const DeltaAttachment& a) { return a.name == name; });
  return at != attachments_.end() ? &*at : nullptr;
}

std::string DeltaReader::describe(TileId id) const {
  return describe_tile(files_[id.file], id.tile);
}

Result<std::vector<std::byte>> DeltaReader::payload(const DeltaTile& tile) const {
  std::vector<std::byte> bytes = LATHE_TRY(read(*file_, tile.offset, tile.payload_size));
  if (checksum64(bytes) != tile.payload_checksum)
    return corruption("the delta of " + describe(tile.id) + " is damaged");
  return bytes;
}

Status DeltaReader::decode(const DeltaTile& tile, codec::Direction direction, std::span<const std::byte> known,
                           std::span<std::byte> out) const {
  if (hash_tile(known) != (direction == codec::Direction::kForward ? tile.before : tile.after))
    return conflict(describe(tile.id) + " has different bytes from those the delta was made from");
  return decode_known(tile, direction, known, out);
}

Status DeltaReader::decode_known(const DeltaTile& tile, codec::Direction direction, std::span<const std::byte> known,
                                 std::span<std::byte> out) const {
  const FileLayout& layout = files_[tile.id.file];
  const uint64_t size = tile_range(layout, tile.id.tile).size;
  if (known.size() != size || out.size() != size)
    return invalid_argument(describe(tile.id) + " was given a different number of bytes");
  const std::vector<std::byte> bytes = LATHE_TRY(payload(tile));
  auto codec = codecs_->take();
  const Status done = codec->decode(tile_parts(layout, tile.id.tile), direction, known, bytes, out, format_);
  codecs_->give(std::move(codec));
  LATHE_TRY(Status(done).at("the delta of " + describe(tile.id)));
  if (hash_tile(out) != (direction == codec::Direction::kForward ? tile.after : tile.before))
    return corruption("the delta of " + describe(tile.id) + " does not produce the bytes that it promises");
  return {};
}

Result<WeightState> DeltaReader::follow(const WeightState& state, codec::Direction direction) const {
  LATHE_TRY(check(state));
  const bool forward = direction == codec::Direction::kForward;
  const Root &leaves = forward ? info_.from_root : info_.to_root, &reaches = forward ? info_.to_root : info_.from_root;
  if (state.files.size() != files_.size()) return conflict("the delta is for a different number of files");
  WeightState next = state;
  for (size_t i = 0; i < files_.size(); ++i) {
    if (state.files[i].layout != files_[i]) return conflict("the delta is for a different layout of " + files_[i].name);
  }
  for (const DeltaTile& tile : tiles_) {
    Hash128& hash = next.files[tile.id.file].tiles[tile.id.tile];
    if (hash != (forward ? tile.before : tile.after))
      return conflict(describe(tile.id) + " has different bytes from those the delta was made from");
    hash = forward ? tile.after : tile.before;
  }
  if (state.root() != leaves)
    return conflict("the delta starts from another state: a tile that it does not change differs");
  if (next.root() != reaches) return corruption("the delta does not produce the state that it promises");
  return next;
}

Status DeltaReader::read_attachment(const DeltaAttachment& attachment,
                                    const std::function<Status(std::span<const std::byte>)>& sink) const {
  Checksum128 hash;
  std::vector<std::byte> piece;
  for (uint64_t done = 0; done < attachment.size; done += piece.size()) {
    piece.resize(std::min(kPiece, attachment.size - done));
    LATHE_TRY(file_->read_at(attachment.offset + done, piece));
    hash.update(piece);
    LATHE_TRY(sink(piece));
  }
  if (hash.finish() != attachment.checksum)
    return corruption("attachment " + attachment.name + " of the delta is damaged");
  return {};
}

Result<std::string> DeltaReader::attachment_text(const DeltaAttachment& attachment, uint64_t limit) const {
  if (attachment.size > limit)
    return invalid_argument("attachment " + attachment.name + " has " + std::to_string(attachment.size) + " bytes");
  std::string text;
  const auto append_piece = [&](std::span<const std::byte> piece) -> Status {
    text.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    return {};
  };
  LATHE_TRY(read_attachment(attachment, append_piece));
  return text;
}

Status DeltaReader::verify() const {
  for (const DeltaTile& tile : tiles_) LATHE_TRY(payload(tile));
  const auto ignore = [](std::span<const std::byte>) { return Status(); };
  for (const DeltaAttachment& attachment : attachments_) LATHE_TRY(read_attachment(attachment, ignore));
  return {};
}

}  // namespace lathe::delta
