#include "weights/gpu_tiles.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <optional>

#include "gpu/device.h"
#include "kernels/cuda_tile_hash.h"

namespace lathe::weights::gpu_tiles {
namespace {

namespace k = kernels::cuda;

static_assert(sizeof(Hash128) == sizeof(kernels::xxh3::Pair));

const std::byte* address(const Range& range) {
  return static_cast<const std::byte*>(range.tensor->const_data_ptr()) + range.offset;
}

// A table in the GPU's memory.
template <class Row>
at::Tensor upload(std::vector<Row>& rows, at::Device device) {
  const auto bytes = static_cast<int64_t>(rows.size() * sizeof(Row));
  return at::from_blob(rows.data(), {bytes}, at::kByte).to(device);
}

std::vector<Hash128> hash(std::span<const std::vector<Range>> tiles) {
  const at::Device device = tiles[0].at(0).tensor->device();
  std::vector<k::HashTile> table;
  std::vector<k::TilePiece> pieces;
  for (const std::vector<Range>& tile : tiles) {
    k::HashTile entry{.first_piece = static_cast<uint32_t>(pieces.size()),
                      .pieces = static_cast<uint32_t>(tile.size())};
    for (const Range& range : tile) {
      LATHE_CHECK(range.tensor->device() == device && range.tensor->is_contiguous());
      pieces.push_back({.data = reinterpret_cast<const uint8_t*>(address(range)),
                        .begin = entry.size,
                        .size = static_cast<uint32_t>(range.size)});
      entry.size += static_cast<uint32_t>(range.size);
    }
    LATHE_CHECK(entry.size <= kTileBytes);
    table.push_back(entry);
  }
  static const kernels::xxh3::Keys keys = [] {
    const auto secret = hash_secret();
    return kernels::xxh3::make_keys(reinterpret_cast<const unsigned char*>(secret.data()));
  }();
  const c10::cuda::CUDAGuard guard(device);
  const auto count = static_cast<int64_t>(tiles.size());
  const at::Tensor tiles_there = upload(table, device), pieces_there = upload(pieces, device);
  const auto words = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor blocks = at::empty({count, k::kTileHashBlocks, 2}, words), hashes = at::empty({count, 2}, words);
  k::hash_tiles(static_cast<const k::HashTile*>(tiles_there.const_data_ptr()),
                static_cast<const k::TilePiece*>(pieces_there.const_data_ptr()), count, keys,
                static_cast<kernels::xxh3::Pair*>(blocks.data_ptr()),
                static_cast<kernels::xxh3::Pair*>(hashes.data_ptr()),
                c10::cuda::getCurrentCUDAStream(device.index()).stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const at::Tensor here = hashes.cpu();
  std::vector<Hash128> out(tiles.size());
  std::memcpy(out.data(), here.const_data_ptr(), out.size() * sizeof(Hash128));
  return out;
}

// A page-locked buffer, which the GPU writes at the bus's full rate and without stopping other threads, and a stream.
struct Lane {
  at::Tensor buffer;
  c10::cuda::CUDAStream stream;

  explicit Lane(c10::DeviceIndex device)
      : buffer(at::empty({static_cast<int64_t>(kTileBytes)}, at::TensorOptions().dtype(at::kByte).pinned_memory(true))),
        stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device)) {}
};

void copy(const Range& range, std::span<std::byte> out) {
  thread_local std::optional<Lane> lane;
  const c10::DeviceIndex device = range.tensor->device().index();
  const c10::cuda::CUDAGuard guard(device);
  if (!lane || lane->stream.device_index() != device) lane.emplace(device);
  for (size_t done = 0; done < out.size();) {
    const size_t size = std::min<size_t>(out.size() - done, kTileBytes);
    C10_CUDA_CHECK(cudaMemcpyAsync(lane->buffer.data_ptr(), address(range) + done, size, cudaMemcpyDeviceToHost,
                                   lane->stream.stream()));
    C10_CUDA_CHECK(cudaStreamSynchronize(lane->stream.stream()));
    std::memcpy(&out[done], lane->buffer.const_data_ptr(), size);
    done += size;
  }
}

}  // namespace

Result<std::vector<Hash128>> hash_tiles(std::span<const std::vector<Range>> tiles) {
  if (tiles.empty()) return std::vector<Hash128>();
  try {
    return hash(tiles);
  } catch (const std::exception& error) {
    return gpu::error_of("hashing the live weights", error);
  }
}

Status read(const Range& range, std::span<std::byte> out) {
  LATHE_CHECK(range.size == out.size() && range.tensor->is_contiguous());
  try {
    copy(range, out);
    return {};
  } catch (const std::exception& error) {
    return gpu::error_of("reading the live weights", error);
  }
}

}  // namespace lathe::weights::gpu_tiles
