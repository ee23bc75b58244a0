#include "kernels/cuda_common.cuh"
#include "kernels/cuda_tile_hash.h"

namespace lathe::kernels::cuda {
namespace {

using xxh3::Keys;
using xxh3::Pair;

constexpr int kBlockKib = 4, kTileKib = 8;  // of a block of the tile; of all its blocks' hashes
constexpr int kThreads = 128, kInputs = kThreads / xxh3::kThreads;

// Keys are looked up by thread: shared memory serves that at once, constant memory one after the other.
__device__ __forceinline__ void share(const Keys& keys, Keys& shared) {
  const auto* from = reinterpret_cast<const uint64_t*>(&keys);
  auto* to = reinterpret_cast<uint64_t*>(&shared);
  if (threadIdx.x < sizeof(Keys) / sizeof(uint64_t)) to[threadIdx.x] = from[threadIdx.x];
  __syncthreads();
}

__device__ __forceinline__ Pair load_pair(const uint8_t* from) {
  const ulonglong2 words = __ldg(reinterpret_cast<const ulonglong2*>(from));
  return {words.x, words.y};
}

// All threads of the warp. Every thread of an input gets its hash.
__device__ __forceinline__ Pair finish(Pair sum, const Keys& keys, int thread, uint64_t bytes) {
  const auto low = lane_sum<xxh3::kThreads>(static_cast<unsigned long long>(xxh3::fold(sum, keys.low, thread)));
  const auto high = lane_sum<xxh3::kThreads>(static_cast<unsigned long long>(xxh3::fold(sum, keys.high, thread)));
  return xxh3::finish(low, high, bytes);
}

// Reads a tile's bytes in ascending order, across pieces and wherever they lie; zeros past the end.
class Gather {
 public:
  __device__ Gather(const TilePiece* pieces, const HashTile& tile)
      : piece_(pieces + tile.first_piece), size_(tile.size) {}

  __device__ Pair pair(uint32_t offset) {
    uint64_t words[2] = {};
    if (inside(offset) && offset + 16 <= piece_->begin + piece_->size && address(offset) % 2 == 0) {
      const auto* halves = reinterpret_cast<const uint16_t*>(address(offset));
      for (int i = 0; i < 8; ++i) words[i / 4] |= static_cast<uint64_t>(__ldg(halves + i)) << 16 * (i % 4);
    } else {
      for (int i = 0; i < 16; ++i) words[i / 8] |= static_cast<uint64_t>(byte(offset + i)) << 8 * (i % 8);
    }
    return {words[0], words[1]};
  }

  // Are bytes [offset, offset + count) in one piece, at an address for loads of 16 bytes?
  __device__ bool straight(uint32_t offset, uint32_t count) {
    return inside(offset) && offset + count <= piece_->begin + piece_->size && address(offset) % 16 == 0;
  }
  __device__ const uint8_t* at(uint32_t offset) const { return reinterpret_cast<const uint8_t*>(address(offset)); }

 private:
  __device__ bool inside(uint32_t offset) {
    if (offset >= size_) return false;
    while (offset >= piece_->begin + piece_->size) ++piece_;
    return true;
  }
  __device__ uintptr_t address(uint32_t offset) const {
    return reinterpret_cast<uintptr_t>(piece_->data) + (offset - piece_->begin);
  }
  __device__ uint8_t byte(uint32_t offset) { return inside(offset) ? *at(offset) : 0; }

  const TilePiece* piece_;
  uint32_t size_;
};

__global__ void __launch_bounds__(kThreads)
    hash_blocks(const HashTile* tiles, const TilePiece* pieces, Keys given, Pair* blocks) {
  __shared__ Keys keys;
  share(given, keys);
  const int64_t input = static_cast<int64_t>(blockIdx.x) * kInputs + threadIdx.x / xxh3::kThreads;
  const int thread = threadIdx.x % xxh3::kThreads;
  constexpr uint32_t kBytes = kBlockKib * 1024;
  const auto begin = static_cast<uint32_t>(input % kTileHashBlocks) * kBytes;
  Gather gather(pieces, tiles[input / kTileHashBlocks]);
  Pair sum;
  if (gather.straight(begin, kBytes)) {
    const uint8_t* from = gather.at(begin) + 16 * thread;
    sum = xxh3::accumulate<kBlockKib>(thread, keys, [&](int i) { return load_pair(from + i * xxh3::kStripe); });
  } else {
    sum = xxh3::accumulate<kBlockKib>(thread, keys,
                                      [&](int i) { return gather.pair(begin + i * xxh3::kStripe + 16 * thread); });
  }
  __syncwarp();
  const Pair hash = finish(sum, keys, thread, kBytes);
  if (thread == 0) blocks[input] = hash;
}

__global__ void __launch_bounds__(kThreads) hash_hashes(const Pair* blocks, int64_t count, Keys given, Pair* hashes) {
  __shared__ Keys keys;
  share(given, keys);
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * kInputs + threadIdx.x / xxh3::kThreads;
  const int thread = threadIdx.x % xxh3::kThreads;
  const Pair* from = blocks + min(tile, count - 1) * kTileHashBlocks + thread;  // a pair is 16 bytes: a thread's share
  const Pair sum = xxh3::accumulate<kTileKib>(
      thread, keys, [&](int i) { return load_pair(reinterpret_cast<const uint8_t*>(from + i * xxh3::kThreads)); });
  const Pair hash = finish(sum, keys, thread, kTileKib * 1024);
  if (thread == 0 && tile < count) hashes[tile] = hash;
}

}  // namespace

void hash_tiles(const HashTile* tiles, const TilePiece* pieces, int64_t count, const Keys& keys, Pair* blocks,
                Pair* hashes, Stream stream) {
  if (count == 0) return;
  const auto grid = static_cast<unsigned>(count * kTileHashBlocks / kInputs);
  hash_blocks<<<grid, kThreads, 0, stream>>>(tiles, pieces, keys, blocks);
  const auto tile_grid = static_cast<unsigned>((count + kInputs - 1) / kInputs);
  hash_hashes<<<tile_grid, kThreads, 0, stream>>>(blocks, count, keys, hashes);
}

}  // namespace lathe::kernels::cuda
