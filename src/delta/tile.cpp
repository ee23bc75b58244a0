#include "delta/tile.h"

#include <algorithm>
#include <memory>

#include "base/parallel.h"

namespace lathe::delta {
namespace {

uint64_t tiles_of(uint64_t bytes) {
  return bytes / kTileBytes + (bytes % kTileBytes != 0);
}

template <class Integer>
void hash_integer(Blake3& hash, Integer value) {  // little-endian, as every machine Lathe runs on
  hash.update(std::as_bytes(std::span(&value, 1)));
}

// The stretch [begin, end) of a run that began at `run_begin`; all in bytes from the data's start.
void add_run(std::vector<codec::TilePart>& parts, codec::ElementType type, uint64_t run_begin, uint64_t begin,
             uint64_t end, uint64_t tile_begin) {
  const uint64_t size = codec::element_size(type);
  const uint64_t first = std::min(end, begin + (size - (begin - run_begin) % size) % size);
  const uint64_t last = end - (end - first) % size;
  const auto add = [&](codec::ElementType of, uint64_t from, uint64_t to) {
    if (from == to) return;
    parts.push_back({.type = of, .offset = from - tile_begin, .size = to - from});
  };
  add(codec::ElementType::kBytes, begin, first);
  add(type, first, last);
  add(codec::ElementType::kBytes, last, end);
}

}  // namespace

codec::ElementType element_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBF16:
      return codec::ElementType::kBFloat16;
    case Dtype::kF16:
      return codec::ElementType::kFloat16;
    case Dtype::kF32:
      return codec::ElementType::kFloat32;
    case Dtype::kI16:
    case Dtype::kU16:
      return codec::ElementType::kWord16;
    case Dtype::kI32:
    case Dtype::kU32:
    case Dtype::kI64:
    case Dtype::kU64:
    case Dtype::kF64:
      return codec::ElementType::kWord32;
    case Dtype::kBool:
    case Dtype::kU8:
    case Dtype::kI8:
    case Dtype::kF8E5M2:
    case Dtype::kF8E4M3:
      return codec::ElementType::kBytes;
  }
  return codec::ElementType::kBytes;
}

FileLayout layout_of(std::string name, uint64_t file_size, const Header& header) {
  FileLayout layout{.name = std::move(name), .size = file_size, .data_offset = header.data_offset};
  for (const TensorInfo& tensor : header.tensors) {
    if (tensor.size() == 0) continue;
    const codec::ElementType type = element_type(tensor.dtype);
    if (!layout.runs.empty() && layout.runs.back().type == type) {
      layout.runs.back().end = tensor.end;
    } else {
      layout.runs.push_back({.end = tensor.end, .type = type});
    }
  }
  return layout;
}

uint64_t tile_count(const FileLayout& layout) {
  return tiles_of(layout.data_offset) + tiles_of(layout.size - layout.data_offset);
}

ByteRange tile_range(const FileLayout& layout, uint64_t tile) {
  const uint64_t head = tiles_of(layout.data_offset);
  const uint64_t begin = tile < head ? tile * kTileBytes : layout.data_offset + (tile - head) * kTileBytes;
  const uint64_t region_end = tile < head ? layout.data_offset : layout.size;
  return {.offset = begin, .size = std::min(kTileBytes, region_end - begin)};
}

std::vector<codec::TilePart> tile_parts(const FileLayout& layout, uint64_t tile) {
  const ByteRange range = tile_range(layout, tile);
  if (range.offset < layout.data_offset) return {{.type = codec::ElementType::kBytes, .offset = 0, .size = range.size}};
  std::vector<codec::TilePart> parts;
  const uint64_t tile_begin = range.offset - layout.data_offset, tile_end = tile_begin + range.size;
  const auto& runs = layout.runs;
  auto run = std::upper_bound(runs.begin(), runs.end(), tile_begin,
                              [](uint64_t offset, const TypeRun& r) { return offset < r.end; });
  for (; run != runs.end(); ++run) {
    const uint64_t run_begin = run == runs.begin() ? 0 : std::prev(run)->end;
    if (run_begin >= tile_end) break;
    add_run(parts, run->type, run_begin, std::max(run_begin, tile_begin), std::min(run->end, tile_end), tile_begin);
  }
  return parts;
}

std::string describe_tile(const FileLayout& layout, uint64_t tile) {
  const std::string name = layout.name + " tile " + std::to_string(tile);
  if (tile >= tile_count(layout)) return name;
  const ByteRange range = tile_range(layout, tile);
  return name + " (bytes " + std::to_string(range.offset) + " to " + std::to_string(range.offset + range.size) + ")";
}

Root WeightState::root() const {
  Blake3 hash;
  for (const FileState& file : files) {
    hash_integer(hash, static_cast<uint32_t>(file.layout.name.size()));
    hash.update(std::as_bytes(std::span(file.layout.name)));
    hash_integer(hash, file.layout.size);
    hash_integer(hash, file.layout.data_offset);
    hash_integer(hash, static_cast<uint32_t>(file.tiles.size()));
    hash.update(std::as_bytes(std::span(file.tiles)));
  }
  return hash.finish();
}

uint64_t WeightState::bytes() const {
  uint64_t sum = 0;
  for (const FileState& file : files) sum += file.layout.size;
  return sum;
}

uint64_t WeightState::tiles() const {
  uint64_t sum = 0;
  for (const FileState& file : files) sum += file.tiles.size();
  return sum;
}

std::string WeightState::describe(TileId id) const {
  return id.file < files.size() ? describe_tile(files[id.file].layout, id.tile) : "file " + std::to_string(id.file);
}

Status check(const FileLayout& layout) {
  const std::string& name = layout.name;
  if (layout.data_offset > layout.size) return invalid_argument(name + ": its data begin past its end");
  uint64_t end = 0;
  for (const TypeRun& run : layout.runs) {
    if (run.end <= end) return invalid_argument(name + ": its element runs do not ascend");
    if (run.type > codec::ElementType::kFloat32) return invalid_argument(name + ": unknown element type");
    end = run.end;
  }
  if (end != layout.size - layout.data_offset) return invalid_argument(name + ": its element runs do not cover it");
  return {};
}

Status check(const WeightState& state) {
  const FileState* previous = nullptr;
  for (const FileState& file : state.files) {
    LATHE_TRY(check(file.layout));
    const std::string& name = file.layout.name;
    if (previous != nullptr && previous->layout.name >= name)
      return invalid_argument("the files of a state must ascend by name: " + name + " does not");
    if (file.tiles.size() != tile_count(file.layout))
      return invalid_argument(name + " has " + std::to_string(file.tiles.size()) + " tile hashes, not " +
                              std::to_string(tile_count(file.layout)));
    previous = &file;
  }
  return {};
}

Result<WeightState> hash_files(io::Env& env, const std::string& directory, std::span<const std::string> names,
                               int threads) {
  WeightState state;
  std::vector<std::unique_ptr<io::RandomAccessFile>> files;
  std::vector<TileId> tiles;
  std::vector<std::string> sorted(names.begin(), names.end());
  std::sort(sorted.begin(), sorted.end());
  for (const std::string& name : sorted) {
    const auto file_index = static_cast<uint32_t>(files.size());
    files.push_back(LATHE_TRY(env.open_read(directory + "/" + name)));
    const Header header = LATHE_TRY(read_header(*files.back()).at(directory + "/" + name));
    FileState file{.layout = layout_of(name, files.back()->size(), header)};
    file.tiles.resize(tile_count(file.layout));
    for (uint32_t tile = 0; tile < file.tiles.size(); ++tile) tiles.push_back({file_index, tile});
    state.files.push_back(std::move(file));
  }
  LATHE_TRY(check(state));
  const size_t workers = thread_count(threads);
  std::vector<std::vector<std::byte>> buffers(workers);
  const auto hash = [&](size_t i, size_t worker) -> Status {
    FileState& file = state.files[tiles[i].file];
    const ByteRange range = tile_range(file.layout, tiles[i].tile);
    if (buffers[worker].size() < range.size) buffers[worker].resize(range.size);
    const std::span bytes(buffers[worker].data(), range.size);
    LATHE_TRY(files[tiles[i].file]->read_at(range.offset, bytes));
    file.tiles[tiles[i].tile] = hash_tile(bytes);
    return {};
  };
  LATHE_TRY(parallel_for(tiles.size(), workers, hash));
  return state;
}

}  // namespace lathe::delta
