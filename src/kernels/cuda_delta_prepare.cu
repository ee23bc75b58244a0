// What each chunk needs of itself: sums of the decays, scores, and the inverse of its triangle.
//
// The triangle, I + M with M_ij = β_i e^{G_i - G_j} k_i·k_j for i > j, is inverted in fp32: 16 rows at a time column by
// column, one column a lane, and what lies between by products of numbers split in two.
#include "kernels/cuda_delta_rule.cuh"

namespace lathe::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kHalf = 32;   // rows of a block of the triangle
constexpr int kPitch = 36;  // numbers from row to row of a block: a row of 16-byte loads meets every bank once
constexpr int kBlock = kHalf * kPitch;
constexpr uint32_t kSharedBytes = 2 * kTileBytes;
static_assert(3 * kBlock * 4 <= kTileBytes && kBlock * 4 <= kTileBytes, "blocks take the tiles' place");

// One warp: G and what follows from it, to `shared` and for the other kernels. Lanes hold two rows each.
__device__ void sum_decays(const Kernel& p, int64_t head, int64_t chunk, int real, float* sums, float* beta) {
  const int lane = threadIdx.x, row = 2 * lane;
  const int64_t at = (chunk * kC + row) * p.shape.value_heads + head;
  const bool first = row < real, second = row + 1 < real;
  const float g0 = first ? p.in.g[at] : 0.0F, g1 = second ? p.in.g[at + p.shape.value_heads] : 0.0F;
  const float b0 = first ? p.in.beta[at] : 0.0F, b1 = second ? p.in.beta[at + p.shape.value_heads] : 0.0F;
  float sum = g0 + g1;
#pragma unroll
  for (int offset = 1; offset < kLanes; offset *= 2) {
    const float before = __shfl_up_sync(0xFFFFFFFFU, sum, offset);
    if (lane >= offset) sum += before;
  }
  float before = __shfl_up_sync(0xFFFFFFFFU, sum, 1);
  if (lane == 0) before = 0;
  const float s0 = before + g0, s1 = s0 + g1, last = __shfl_sync(0xFFFFFFFFU, s1, kLanes - 1);
  sums[row] = s0, sums[row + 1] = s1, beta[row] = b0, beta[row + 1] = b1;
  float* out = of_chunk<float>(p.chunks.decays, p, head, chunk, kDecayRows * kC) + row;
  const auto put = [&](DecayRow which, float x, float y) {
    *reinterpret_cast<float2*>(out + which * kC) = make_float2(x, y);
  };
  put(kSumRow, s0, s1);
  put(kDecayRow, __expf(s0), __expf(s1));
  put(kTailRow, __expf(last - s0), __expf(last - s1));
  put(kBetaRow, b0, b1);
}

// The block of M that (row, column) is in: 0 and 2 on the diagonal, 1 between them.
__device__ __forceinline__ float* block_entry(float* blocks, int row, int column) {
  return blocks + (row / kHalf + column / kHalf) * kBlock + (row % kHalf) * kPitch + column % kHalf;
}

// Half a warp's 16 x 16 on the diagonal becomes its inverse. A lane solves for one column, top to bottom.
__device__ void invert_diagonal(float* blocks) {
  const int quarter = threadIdx.x / 16, lane = threadIdx.x % 16;
  float* block = block_entry(blocks, 16 * quarter, 16 * quarter);
  float t[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    float sum[4] = {i == lane ? 1.0F : 0.0F, 0, 0, 0};
#pragma unroll
    for (int l = 0; l < i; l += 4) {
      const float4 m = *reinterpret_cast<const float4*>(block + i * kPitch + l);
      sum[0] -= m.x * t[l];
      if (l + 1 < i) sum[1] -= m.y * t[l + 1];
      if (l + 2 < i) sum[2] -= m.z * t[l + 2];
      if (l + 3 < i) sum[3] -= m.w * t[l + 3];
    }
    t[i] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 16; ++i) block[i * kPitch + lane] = t[i];
}

// A pair of numbers as a sum of two bf16 each: their product is short of the last eighth of fp32's digits.
struct Split {
  uint32_t high, low;
  __device__ Split(float x, float y) {
    high = pack_pair(x, y);
    const float2 rounded = unpack_pair(high);
    low = pack_pair(x - rounded.x, y - rounded.y);
  }
};

// A warp: c = ± a b, 16 x 16 with a depth of kDepth, between blocks of fp32.
template <int kDepth>
__device__ __forceinline__ void multiply_split(const float* a, const float* b, float* c, float sign) {
  const int lane = threadIdx.x % kLanes, row = lane / 4, pair = 2 * (lane % 4);
  float sum[2][4] = {};
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    Fragment high, low;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = *reinterpret_cast<const float2*>(a + (row + 8 * (i % 2)) * kPitch + k + pair + 8 * (i / 2));
      const Split split(x.x, x.y);
      high.x[i] = split.high, low.x[i] = split.low;
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float* from = b + (k + pair) * kPitch + 8 * n + row;
      const Split first(from[0], from[kPitch]), second(from[8 * kPitch], from[9 * kPitch]);
      multiply_add(sum[n], low, first.high, second.high);
      multiply_add(sum[n], high, first.low, second.low);
      multiply_add(sum[n], high, first.high, second.high);
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int part = 0; part < 2; ++part)
      *reinterpret_cast<float2*>(c + (row + 8 * part) * kPitch + 8 * n + pair) =
          make_float2(sign * sum[n][2 * part], sign * sum[n][2 * part + 1]);
}

// I + M becomes its inverse: 16 rows at a time, then twice what lies between two inverted halves, -T22 M21 T11.
__device__ __forceinline__ void invert(float* blocks, float* product) {
  const int warp = threadIdx.x / kLanes;
  if (warp < 2) {
    invert_diagonal(blocks);
    __syncwarp();
    float* block = blocks + 2 * warp * kBlock;
    float *between = block + 16 * kPitch, *own = product + warp * 16 * kPitch;
    multiply_split<16>(between, block, own, 1);
    __syncwarp();
    multiply_split<16>(between + 16, own, between, -1);
  }
  __syncthreads();
  const int place = (warp / 2) * 16 * kPitch, column = (warp % 2) * 16;
  multiply_split<kHalf>(blocks + kBlock + place, blocks + column, product + place + column, 1);
  __syncthreads();
  multiply_split<kHalf>(blocks + 2 * kBlock + place, product + column, blocks + kBlock + place + column, -1);
}

// Both products of a warp's 16 rows with all keys up to them.
__device__ __forceinline__ void multiply_rows(uint32_t keys, uint32_t queries, float (&kk)[8][4], float (&qk)[8][4]) {
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const Tile<kC> k_tile{keys}, q_tile{queries};
#pragma unroll
  for (int k = 0; k < kD; k += 16) {
    const Fragment key = k_tile.first(16 * warp, k, lane), query = q_tile.first(16 * warp, k, lane);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (n > warp) continue;
      const Fragment other = k_tile.second(16 * n, k, lane);
      multiply_add(kk[2 * n], kk[2 * n + 1], key, other);
      multiply_add(qk[2 * n], qk[2 * n + 1], query, other);
    }
  }
}

// M to `blocks`, scores to global memory.
__device__ __forceinline__ void place_rows(const Kernel& p, int64_t head, int64_t chunk, const float (&kk)[8][4],
                                           const float (&qk)[8][4], const float* sums, const float* beta,
                                           float* blocks) {
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  auto* scores = of_chunk<__nv_bfloat16>(p.chunks.scores, p, head, chunk, kC * kC);
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const int row = 16 * warp + lane / 4 + 8 * part;
    const float sum = sums[row], factor = beta[row];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      uint32_t packed[2] = {0, 0};
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const int column = 16 * n + 8 * tile + 2 * (lane % 4);
        float m[2] = {0, 0};
        if (n <= warp) {
          float a[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int j = column + e;
            // Masked before the exponential: above the diagonal exponents are positive.
            const float l = row >= j ? __expf(sum - sums[j]) : 0.0F;
            m[e] = row > j ? factor * l * kk[2 * n + tile][2 * part + e] : 0.0F;
            a[e] = l * qk[2 * n + tile][2 * part + e];
          }
          packed[tile] = pack_pair(a[0], a[1]);
        }
        if (row / kHalf >= column / kHalf)
          *reinterpret_cast<float2*>(block_entry(blocks, row, column)) = make_float2(m[0], m[1]);
      }
      *reinterpret_cast<uint2*>(scores + row * kC + 16 * n + four_start(lane)) =
          gather_four(packed[0], packed[1], lane);
    }
  }
}

__device__ void write_inverse(const Kernel& p, int64_t head, int64_t chunk, float* blocks) {
  auto* out = of_chunk<__nv_bfloat16>(p.chunks.inverse, p, head, chunk, kC * kC);
#pragma unroll
  for (int i = threadIdx.x; i < kC * kC / 8; i += kThreads) {
    const int row = i / 8, column = (i % 8) * 8;
    uint4 packed = make_uint4(0, 0, 0, 0);
    if (row / kHalf >= column / kHalf) {
      const float* from = block_entry(blocks, row, column);
      const float4 x = *reinterpret_cast<const float4*>(from), y = *reinterpret_cast<const float4*>(from + 4);
      packed = make_uint4(pack_pair(x.x, x.y), pack_pair(x.z, x.w), pack_pair(y.x, y.y), pack_pair(y.z, y.w));
    }
    *reinterpret_cast<uint4*>(out + row * kC + column) = packed;
  }
}

__global__ void __launch_bounds__(kThreads) prepare_chunks(const Kernel p) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float sums[kC], beta[kC];
  const int64_t chunk = blockIdx.x, head = blockIdx.y, key_head = head / p.ratio;
  const int real = static_cast<int>(min(static_cast<int64_t>(kC), p.shape.tokens - chunk * kC));
  const uint32_t keys = shared_address(shared), queries = keys + kTileBytes;
  const auto rows = [&](const DeltaRows& t) {
    return static_cast<const __nv_bfloat16*>(t.data) + chunk * kC * t.stride + key_head * kD;
  };
  load_tile<kThreads, kC, kD / 8>(threadIdx.x, keys, rows(p.in.k), p.in.k.stride, real);
  load_tile<kThreads, kC, kD / 8>(threadIdx.x, queries, rows(p.in.q), p.in.q.stride, real);
  copy_commit();
  if (threadIdx.x < kLanes) sum_decays(p, head, chunk, real, sums, beta);
  copy_wait<0>();
  __syncthreads();
  float kk[8][4] = {}, qk[8][4] = {};
  multiply_rows(keys, queries, kk, qk);
  __syncthreads();  // keys and queries have been read: their place is used again
  auto* blocks = reinterpret_cast<float*>(shared);
  float* product = reinterpret_cast<float*>(shared + kTileBytes);
  place_rows(p, head, chunk, kk, qk, sums, beta, blocks);
  __syncthreads();
  invert(blocks, product);
  __syncthreads();
  write_inverse(p, head, chunk, blocks);
}

}  // namespace

void prepare_delta_chunks(const Kernel& p, CUstream_st* stream) {
  const dim3 grid(static_cast<unsigned>(p.chunk_count), static_cast<unsigned>(p.shape.value_heads));
  prepare_chunks<<<grid, kThreads, kSharedBytes, stream>>>(p);
}

}  // namespace lathe::kernels::cuda
