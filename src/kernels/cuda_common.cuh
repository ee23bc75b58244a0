// What the CUDA kernels share: packs of 16 bytes, conversions, sums over a block.
//
// Device code only. Rounding: nearest, ties to even, written out where the CPU twin rounds; no multiply and add is
// fused unless it says fma, so that results agree with the twins.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace lathe::kernels::cuda {

using bf16 = __nv_bfloat16;

constexpr int kWarp = 32;
constexpr int kMaxGrid = 1024;  // blocks of a launch that walks over its work

// kSize consecutive elements, loaded and stored as one where kSize * sizeof(T) is 16.
template <class T, int kSize>
struct alignas(kSize * sizeof(T)) Pack {
  T at[kSize];
};

template <class T, int kSize>
__device__ __forceinline__ Pack<T, kSize> load(const T* from) {
  return *reinterpret_cast<const Pack<T, kSize>*>(from);
}
template <class T, int kSize>
__device__ __forceinline__ void store(T* to, const Pack<T, kSize>& pack) {
  *reinterpret_cast<Pack<T, kSize>*>(to) = pack;
}

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ float widen(bf16 x) {
  return __bfloat162float(x);
}
template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
// x as T would hold it.
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return widen(narrow<T>(x));
}

// Sum over the kLanes (a power of two, at most a warp) threads that share threadIdx.x / kLanes; all of them get it.
template <int kLanes, class T>
__device__ __forceinline__ T lane_sum(T x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xFFFFFFFFU, x, offset, kLanes);
  return x;
}

// Sum over all kThreads of a block, in a fixed order; all threads get it. `scratch` holds kThreads / kWarp numbers and
// may be used again at once.
template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T x, T* scratch) {
  x = lane_sum<kWarp>(x);
  __syncthreads();  // the scratch of an earlier sum has been read
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  T sum = scratch[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / kWarp; ++warp) sum += scratch[warp];
  return sum;
}

// Sum over kLanes threads: of a warp, or of the whole block of kLanes.
template <int kLanes>
__device__ __forceinline__ float row_sum(float x, float* scratch) {
  if constexpr (kLanes <= kWarp) return lane_sum<kLanes>(x);
  return block_sum<kLanes>(x, scratch);
}

}  // namespace lathe::kernels::cuda
