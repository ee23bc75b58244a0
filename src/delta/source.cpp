#include "delta/source.h"

#include <algorithm>

#include "base/parallel.h"
#include "delta/model_dir.h"

namespace lathe::delta {

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

std::span<const TensorSource::Piece> TensorSource::pieces_of(TileId id) const {
  const ByteRange range = tile_range(state_->files[id.file].layout, id.tile);
  const auto& pieces = pieces_[id.file];
  const auto first = std::upper_bound(pieces.begin(), pieces.end(), range.offset,
                                      [](uint64_t offset, const Piece& p) { return offset < p.end; });
  const auto last =
      std::find_if(first, pieces.end(), [&](const Piece& p) { return p.begin >= range.offset + range.size; });
  return {first, last};
}

Result<std::span<const std::byte>> TensorSource::read(TileId id, std::span<std::byte> scratch) const {
  const ByteRange range = tile_range(state_->files[id.file].layout, id.tile);
  const auto pieces = pieces_of(id);
  // A header, or a tile with a tensor that nobody replaces.
  if (pieces.empty() || !std::all_of(pieces.begin(), pieces.end(), [](const Piece& p) { return p.replaced; })) {
    LATHE_TRY(files_.read(id, scratch));
  }
  for (const Piece& piece : pieces) {
    if (!piece.replaced) continue;
    const uint64_t begin = std::max(piece.begin, range.offset), end = std::min(piece.end, range.offset + range.size);
    LATHE_TRY(tensors_->read(piece.tensor, begin - piece.begin, scratch.subspan(begin - range.offset, end - begin)));
  }
  return std::span<const std::byte>(scratch.first(range.size));
}

std::vector<TensorRange> TensorSource::ranges_of(TileId id) const {
  const ByteRange range = tile_range(state_->files[id.file].layout, id.tile);
  std::vector<TensorRange> ranges;
  for (const Piece& piece : pieces_of(id)) {
    if (!piece.replaced) return {};
    const uint64_t begin = std::max(piece.begin, range.offset), end = std::min(piece.end, range.offset + range.size);
    ranges.push_back({.tensor = piece.tensor, .offset = begin - piece.begin, .size = end - begin});
  }
  return ranges;
}

Result<Hash128> TensorSource::hash(TileId id, std::span<std::byte> scratch) const {
  return hash_tile(LATHE_TRY(read(id, scratch)));
}

Result<std::vector<Hash128>> TensorReader::hash_tiles(std::span<const std::vector<TensorRange>>) const {
  return internal("this reader does not hash tensors in place");
}

Result<std::vector<Hash128>> WeightSource::hash_all(std::span<const TileId> tiles, int threads) const {
  std::vector<Hash128> hashes(tiles.size());
  const Status hashed = parallel_for(tiles.size(), thread_count(threads), [&](size_t i, size_t) -> Status {
    thread_local std::vector<std::byte> scratch(kTileBytes);
    hashes[i] = LATHE_TRY(hash(tiles[i], scratch));
    return {};
  });
  LATHE_TRY(hashed);
  return hashes;
}

Result<std::vector<Hash128>> TensorSource::hash_all(std::span<const TileId> tiles, int threads) const {
  if (!tensors_->hashes_in_place()) return WeightSource::hash_all(tiles, threads);
  std::vector<size_t> there, here;  // indices
  std::vector<std::vector<TensorRange>> ranges;
  for (size_t i = 0; i < tiles.size(); ++i) {
    auto made_of = ranges_of(tiles[i]);
    (made_of.empty() ? here : there).push_back(i);
    if (!made_of.empty()) ranges.push_back(std::move(made_of));
  }
  std::vector<Hash128> hashes(tiles.size());
  const auto in_place = LATHE_TRY(tensors_->hash_tiles(ranges));
  for (size_t i = 0; i < there.size(); ++i) hashes[there[i]] = in_place[i];
  std::vector<TileId> rest;
  rest.reserve(here.size());
  for (const size_t i : here) rest.push_back(tiles[i]);
  const auto read = LATHE_TRY(WeightSource::hash_all(rest, threads));
  for (size_t i = 0; i < here.size(); ++i) hashes[here[i]] = read[i];
  return hashes;
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
  const auto hashes = LATHE_TRY(source.hash_all(candidates, threads));
  std::vector<TileId> out;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const TileId id = candidates[i];
    if (hashes[i] != state.files[id.file].tiles[id.tile]) out.push_back(id);
  }
  return out;
}

}  // namespace lathe::delta
