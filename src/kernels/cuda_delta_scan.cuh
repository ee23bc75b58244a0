// What the walks over the chunks share, forward and back: how tiles arrive, and the part of a state that a warp owns.
//
// A block is eight warps: four compute, each with 16 columns of the values; four fetch tiles, some chunks ahead. One
// barrier a chunk: what was fetched is there, what was read may be overwritten.
#pragma once

#include "kernels/cuda_delta_rule.cuh"

namespace lathe::kernels::cuda {

constexpr int kGroupThreads = 128;                   // of those that compute, and of those that fetch
constexpr int kSlice = 16 * kGroupThreads / kLanes;  // columns of the values of one block

// Tiles of one chunk in shared memory. kValues: the values, or the gradient of what was read.
constexpr uint32_t kKeys = 0, kQueries = kTileBytes, kInverse = 2 * kTileBytes, kScores = kInverse + kSquareBytes,
                   kValues = kScores + kSquareBytes, kDecays = kValues + kC * kRowBytes,
                   kStageBytes = kDecays + kDecayRows * kC * 4;

__device__ __forceinline__ void load_stage(const Kernel& p, const DeltaRows& values, uint32_t stage, int64_t chunk) {
  constexpr int kThreads = kGroupThreads;
  const int thread = threadIdx.x - kGroupThreads;
  const int64_t head = blockIdx.y, row = chunk * kC;
  const int real = static_cast<int>(min(static_cast<int64_t>(kC), p.shape.tokens - row));
  const auto rows = [&](const DeltaRows& t, int64_t column) {
    return static_cast<const __nv_bfloat16*>(t.data) + row * t.stride + column;
  };
  const auto square = [&](void* t) { return of_chunk<__nv_bfloat16>(t, p, head, chunk, kC * kC); };
  load_tile<kThreads, kC, kD / 8>(thread, stage + kKeys, rows(p.in.k, head / p.ratio * kD), p.in.k.stride, real);
  load_tile<kThreads, kC, kD / 8>(thread, stage + kQueries, rows(p.in.q, head / p.ratio * kD), p.in.q.stride, real);
  load_tile<kThreads, kC, kSlice / 8>(thread, stage + kValues, rows(values, head * kD + blockIdx.x * kSlice),
                                      values.stride, real);
  load_tile<kThreads, kC, kC / 8>(thread, stage + kInverse, square(p.chunks.inverse), kC);
  load_tile<kThreads, kC, kC / 8>(thread, stage + kScores, square(p.chunks.scores), kC);
  const float* decays = of_chunk<float>(p.chunks.decays, p, head, chunk, kDecayRows * kC);
  if (thread < kDecayRows * kC / 4) copy_async(stage + kDecays + 16 * thread, decays + 4 * thread);
}

// The fetching warps' whole life: chunk_at(0), chunk_at(1), ... of `steps`.
template <int kStages, class ChunkAt>
__device__ __forceinline__ void fetch(const Kernel& p, const DeltaRows& values, uint32_t base, ChunkAt&& chunk_at) {
  const int64_t steps = p.chunk_count;
  const auto start = [&](int64_t step) {
    if (step < steps) load_stage(p, values, base + static_cast<uint32_t>(step % kStages) * kStageBytes, chunk_at(step));
    copy_commit();
  };
  for (int64_t step = 0; step + 1 < kStages; ++step) start(step);
  for (int64_t step = -1; step < steps; ++step) {
    if (step >= 0) start(step + kStages - 1);
    copy_wait<kStages - 2>();  // all but the newest: the next step's tiles are there
    show_to_products();
    __syncthreads();
  }
}

using State = float[kD / 8][4];  // of 16 columns of the values: rows of fragments are these, columns the keys'
using Rows = float[kC / 8][4];   // the same with a chunk's rows as columns

__device__ __forceinline__ void load_state(const float* from, State& s, int64_t head, int column, int lane) {
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      s[n][e] = from ? from[(head * kD + 8 * n + 2 * (lane % 4) + e % 2) * kD + column + lane / 4 + 8 * (e / 2)] : 0.0F;
}
__device__ __forceinline__ void store_state(float* to, const State& s, int64_t head, int column, int lane) {
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      to[(head * kD + 8 * n + 2 * (lane % 4) + e % 2) * kD + column + lane / 4 + 8 * (e / 2)] = s[n][e];
}

template <int kColumns>
__device__ __forceinline__ void scale(float (&x)[kColumns][4], float factor) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) x[n][e] *= factor;
}

// What a chunk's rows are scaled by lies along the columns of fragments.
__device__ __forceinline__ float2 of_column(const float* decays, DecayRow which, int n) {
  return *reinterpret_cast<const float2*>(decays + which * kC + 8 * n + 2 * (threadIdx.x % 4));
}
__device__ __forceinline__ void scale_columns(Rows& x, const float* decays, DecayRow which) {
#pragma unroll
  for (int n = 0; n < kC / 8; ++n) {
    const float2 factor = of_column(decays, which, n);
    x[n][0] *= factor.x, x[n][1] *= factor.y, x[n][2] *= factor.x, x[n][3] *= factor.y;
  }
}

template <int kColumns>
__device__ __forceinline__ void round_to(Fragment (&to)[kColumns / 2], const float (&from)[kColumns][4]) {
#pragma unroll
  for (int k = 0; k < kColumns / 2; ++k) to[k] = as_first(from[2 * k], from[2 * k + 1]);
}

// A copy in registers of its own.
template <int kBlocks>
__device__ __forceinline__ void copy_fragments(Fragment (&to)[kBlocks], const Fragment (&from)[kBlocks]) {
#pragma unroll
  for (int k = 0; k < kBlocks; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("mov.b32 %0, %1;\n" : "=r"(to[k].x[i]) : "r"(from[k].x[i]));
}

// 16 rows of kBlocks fragments to a matrix [V, 16 kBlocks].
template <int kBlocks>
__device__ __forceinline__ void store_fragments(__nv_bfloat16* to, const Fragment (&f)[kBlocks], int column, int lane) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n)
#pragma unroll
    for (int part = 0; part < 2; ++part)
      *reinterpret_cast<uint2*>(to + (column + lane / 4 + 8 * part) * (16 * kBlocks) + 16 * n + four_start(lane)) =
          gather_four(f[n].x[part], f[n].x[2 + part], lane);
}

// The most stages that a block of this device has room for.
inline int stages_of_scan() {
  return shared_bytes_of_device() >= static_cast<int>(3 * kStageBytes) ? 3 : 2;
}

template <class Scan, class Parameters>
void launch_scan(Scan kernel, const Parameters& p, int stages, CUstream_st* stream) {
  const auto bytes = static_cast<int>(stages * kStageBytes);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  const dim3 grid(kD / kSlice, static_cast<unsigned>(p.shape.value_heads));
  kernel<<<grid, 2 * kGroupThreads, bytes, stream>>>(p);
}

}  // namespace lathe::kernels::cuda
