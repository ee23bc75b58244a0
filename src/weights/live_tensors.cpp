#include "weights/live_tensors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>

#ifdef LATHE_CUDA
#include "weights/gpu_tiles.h"
#endif

namespace lathe::weights {

using delta::TensorRange;

std::optional<uint64_t> LiveTensors::size(std::string_view tensor) const {
  const Part* part = store_.find_part(tensor);
  if (!part) return std::nullopt;
  return part->data.nbytes();
}

const at::Tensor* LiveTensors::find(const TensorRange& range) const {
  const Part* part = store_.find_part(range.tensor);
  if (!part || range.offset > part->data.nbytes() || range.size > part->data.nbytes() - range.offset) return nullptr;
  return &part->data;
}

Status LiveTensors::read(std::string_view tensor, uint64_t offset, std::span<std::byte> out) const {
  const at::Tensor* data = find({.tensor = tensor, .offset = offset, .size = out.size()});
  if (!data) return internal("read() past the end of live tensor " + std::string(tensor));
#ifdef LATHE_CUDA
  if (data->is_cuda()) return gpu_tiles::read({.tensor = data, .offset = offset, .size = out.size()}, out);
#endif
  std::memcpy(out.data(), static_cast<const std::byte*>(data->const_data_ptr()) + offset, out.size());
  return {};
}

bool LiveTensors::hashes_in_place() const {
#ifdef LATHE_CUDA
  const auto parameters = store_.parameters();
  return !parameters.empty() &&
         std::all_of(parameters.begin(), parameters.end(), [](const Parameter& p) { return p.data.is_cuda(); });
#else
  return false;
#endif
}

#ifdef LATHE_CUDA
Result<std::vector<Hash128>> LiveTensors::hash_tiles(std::span<const std::vector<TensorRange>> tiles) const {
  std::vector<std::vector<gpu_tiles::Range>> there;
  for (const std::vector<TensorRange>& tile : tiles) {
    auto& ranges = there.emplace_back();
    for (const TensorRange& range : tile) {
      const at::Tensor* data = find(range);
      if (!data) return internal("hash_tiles() past the end of live tensor " + std::string(range.tensor));
      ranges.push_back({.tensor = data, .offset = range.offset, .size = range.size});
    }
  }
  return gpu_tiles::hash_tiles(there);
}
#else
Result<std::vector<Hash128>> LiveTensors::hash_tiles(std::span<const std::vector<TensorRange>> tiles) const {
  return TensorReader::hash_tiles(tiles);
}
#endif

}  // namespace lathe::weights
