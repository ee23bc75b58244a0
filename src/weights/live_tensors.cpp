#include "weights/live_tensors.h"

#include <ATen/ATen.h>

#include <cstring>

namespace lathe::weights {

std::optional<uint64_t> LiveTensors::size(std::string_view tensor) const {
  const Part* part = store_.find_part(tensor);
  if (!part) return std::nullopt;
  return part->data.nbytes();
}

Status LiveTensors::read(std::string_view tensor, uint64_t offset, std::span<std::byte> out) const {
  const Part* part = store_.find_part(tensor);
  if (!part || offset > part->data.nbytes() || out.size() > part->data.nbytes() - offset)
    return internal("read() past the end of live tensor " + std::string(tensor));
  if (part->data.is_cpu()) {
    std::memcpy(out.data(), static_cast<const std::byte*>(part->data.const_data_ptr()) + offset, out.size());
    return {};
  }
  try {
    const at::Tensor bytes =
        part->data.view(-1).view(at::kByte).narrow(0, static_cast<int64_t>(offset), static_cast<int64_t>(out.size()));
    at::from_blob(out.data(), {static_cast<int64_t>(out.size())}, at::kByte).copy_(bytes);
  } catch (const std::exception& error) {
    return internal("reading live tensor " + std::string(tensor) + ": " + error.what());
  }
  return {};
}

}  // namespace lathe::weights
