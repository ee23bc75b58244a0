#include "checkpoint/source.h"

#include <algorithm>

#include "checkpoint/model_dir.h"
#include "checkpoint/parallel.h"

namespace lathe::checkpoint {

Result<FileSource> FileSource::open(io::Env& env, const std::string& directory, const WeightState& state) {
  FileSource source(state);
  for (const FileState& file : state.files) {
    const std::string path = directory + "/" + file.layout.name;
    source.files_.push_back(LATHE_TRY(env.open_read(path)));
    const uint64_t size = source.files_.back()->size();
    if (size != file.layout.size) {
      return corruption(path + " has " + std::to_string(size) + " bytes; its history says " +
                        std::to_string(file.layout.size) + ": it was changed by another program");
    }
  }
  return source;
}

Result<std::span<const std::byte>> FileSource::read(TileId id, std::span<std::byte> scratch) const {
  const ByteRange range = tile_range(state_->files[id.file].layout, id.tile);
  const auto out = scratch.first(range.size);
  LATHE_TRY(files_[id.file]->read_at(range.offset, out));
  return std::span<const std::byte>(out);
}

Result<Hash128> FileSource::hash(TileId id, std::span<std::byte> scratch) const {
  return hash_tile(LATHE_TRY(read(id, scratch)));
}

Result<TensorSource> TensorSource::open(io::Env& env, const std::string& directory, const WeightState& state,
                                        const TensorReader& tensors) {
  TensorSource source(LATHE_TRY(FileSource::open(env, directory, state)), state, tensors);
  const ModelDir dir = LATHE_TRY(ModelDir::open(env, directory));
  for (const FileState& file : state.files) {
    const auto shard = std::find_if(dir.shards().begin(), dir.shards().end(),
                                    [&](const Shard& s) { return s.file == file.layout.name; });
    if (shard == dir.shards().end()) return corruption(directory + " no longer has " + file.layout.name);
    std::vector<Piece> pieces;
    for (const TensorInfo& info : shard->header.tensors) {
      const auto size = tensors.size(info.name);
      if (size && *size != info.size()) {
        return invalid_argument("tensor " + info.name + " has " + std::to_string(*size) + " bytes, " +
                                std::to_string(info.size()) + " in " + file.layout.name);
      }
      if (info.size() == 0) continue;
      pieces.push_back({.begin = shard->header.data_offset + info.begin,
                        .end = shard->header.data_offset + info.end,
                        .tensor = info.name,
                        .replaced = size.has_value()});
    }
    source.pieces_.push_back(std::move(pieces));
  }
  return source;
}

Result<std::span<const std::byte>> TensorSource::read(TileId id, std::span<std::byte> scratch) const {
  const ByteRange range = tile_range(state_->files[id.file].layout, id.tile);
  const auto& pieces = pieces_[id.file];
  const uint64_t range_end = range.offset + range.size;
  auto piece = std::upper_bound(pieces.begin(), pieces.end(), range.offset,
                                [](uint64_t offset, const Piece& p) { return offset < p.end; });
  const auto behind = std::find_if(piece, pieces.end(), [&](const Piece& p) { return p.begin >= range_end; });
  // A header, or a tile with a tensor that nobody replaces.
  if (piece == behind || !std::all_of(piece, behind, [](const Piece& p) { return p.replaced; })) {
    LATHE_TRY(files_.read(id, scratch));
  }
  for (; piece != behind; ++piece) {
    if (!piece->replaced) continue;
    const uint64_t begin = std::max(piece->begin, range.offset), end = std::min(piece->end, range_end);
    LATHE_TRY(tensors_->read(piece->tensor, begin - piece->begin, scratch.subspan(begin - range.offset, end - begin)));
  }
  return std::span<const std::byte>(scratch.first(range.size));
}

Result<Hash128> TensorSource::hash(TileId id, std::span<std::byte> scratch) const {
  return hash_tile(LATHE_TRY(read(id, scratch)));
}

Result<std::vector<TileId>> changed_tiles(const WeightSource& source, const WeightState& state, size_t count,
                                          int threads, size_t& begin) {
  std::vector<TileId> candidates;
  size_t at = 0;
  for (uint32_t file = 0; file < state.files.size(); ++file) {
    const size_t tiles = state.files[file].tiles.size();
    for (size_t tile = begin > at ? begin - at : 0; tile < tiles && candidates.size() < count; ++tile) {
      candidates.push_back({file, static_cast<uint32_t>(tile)});
    }
    at += tiles;
  }
  begin += candidates.size();
  std::vector<char> changed(candidates.size());
  const Status hashed = parallel_for(candidates.size(), thread_count(threads), [&](size_t i, size_t) -> Status {
    thread_local std::vector<std::byte> scratch(kTileBytes);
    const TileId id = candidates[i];
    changed[i] = LATHE_TRY(source.hash(id, scratch)) != state.files[id.file].tiles[id.tile];
    return {};
  });
  LATHE_TRY(hashed);
  std::vector<TileId> out;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (changed[i]) out.push_back(candidates[i]);
  }
  return out;
}

}  // namespace lathe::checkpoint
