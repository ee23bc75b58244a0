// Tiles of weights in a GPU's memory: hashed there, or read out fast.
//
// Threads: any, while nobody changes the weights. hash_tiles() works on the calling thread's stream, read() on streams of
// its own, one per thread, so that several threads read at once.
// Memory: hash_tiles() 8 KiB per tile on the GPU; read() one page-locked tile per thread.
// Only in a build with CUDA.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <span>
#include <vector>

#include "base/hash.h"
#include "base/result.h"

namespace lathe::weights::gpu_tiles {

// Bytes [offset, offset + size) of a contiguous tensor.
struct Range {
  const at::Tensor* tensor = nullptr;
  uint64_t offset = 0, size = 0;
};

// hash_tile of each tile, the concatenation of its ranges; all on one GPU.
Result<std::vector<Hash128>> hash_tiles(std::span<const std::vector<Range>> tiles);

Status read(const Range& range, std::span<std::byte> out);

}  // namespace lathe::weights::gpu_tiles
