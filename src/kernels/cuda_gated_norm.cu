#include "kernels/cuda_common.cuh"
#include "kernels/cuda_gated_norm.h"

namespace lathe::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kHead = 128;
constexpr int kEach = kHead / kWarp;  // columns of a lane

using Four = Pack<bf16, kEach>;

// One row, as a lane sees it.
struct Row {
  float x[kEach], z[kEach], r = 0;
  __device__ Row(const GatedNorm& in, int64_t row, int column) {
    const int64_t token = row / in.heads, head = row - token * in.heads;
    const Four xs = load<bf16, kEach>(static_cast<const bf16*>(in.x) + row * kHead + column);
    const Four zs = load<bf16, kEach>(static_cast<const bf16*>(in.z) + token * in.z_stride + head * kHead + column);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      x[i] = widen(xs.at[i]), z[i] = widen(zs.at[i]);
      sum += x[i] * x[i];
    }
    r = rsqrtf(lane_sum<kWarp>(sum) / kHead + in.eps);
  }
};

__device__ __forceinline__ void load_weight(const GatedNorm& in, int column, float (&w)[kEach]) {
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    w[i] = in.wide_w ? static_cast<const float*>(in.w)[column + i] : widen(static_cast<const bf16*>(in.w)[column + i]);
}

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0F / (1.0F + __expf(-x));
}

// w T(n), which is a bf16 where w is.
__device__ __forceinline__ float normed(float x, float r, float w, bool wide_w) {
  const float n = rounded<bf16>(x * r) * w;
  return wide_w ? n : rounded<bf16>(n);
}

__global__ void __launch_bounds__(kThreads) norm_and_gate(const GatedNorm in, bf16* y) {
  const int column = threadIdx.x % kWarp * kEach;
  float w[kEach];
  load_weight(in, column, w);
  const int64_t rows = in.tokens * in.heads, step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < rows; row += step) {
    const Row at(in, row, column);
    Four result;
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      result.at[i] = narrow<bf16>(normed(at.x[i], at.r, w[i], in.wide_w) * at.z[i] * sigmoid(at.z[i]));
    store(y + row * kHead + column, result);
  }
}

__global__ void __launch_bounds__(kThreads)
    norm_and_gate_gradient(const GatedNorm in, const bf16* dy, bf16* dx, bf16* dz, int64_t dz_stride, float* dw) {
  __shared__ float sums[kWarps][kHead];
  const int warp = threadIdx.x / kWarp, column = threadIdx.x % kWarp * kEach;
  float w[kEach], own[kEach] = {};
  load_weight(in, column, w);
  const int64_t rows = in.tokens * in.heads, step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp; row < rows; row += step) {
    const Row at(in, row, column);
    const Four d = load<bf16, kEach>(dy + row * kHead + column);
    float dn[kEach], dot = 0;
    Four d_gate, d_input;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float g = widen(d.at[i]), s = sigmoid(at.z[i]), n = at.x[i] * at.r;
      const float through = g * at.z[i] * s;
      d_gate.at[i] = narrow<bf16>(g * normed(at.x[i], at.r, w[i], in.wide_w) * s * (1.0F + at.z[i] * (1.0F - s)));
      own[i] += through * n;
      dn[i] = through * w[i];
      dot += dn[i] * n;
    }
    const float mean = lane_sum<kWarp>(dot) / kHead;
#pragma unroll
    for (int i = 0; i < kEach; ++i) d_input.at[i] = narrow<bf16>(at.r * (dn[i] - at.x[i] * at.r * mean));
    const int64_t token = row / in.heads;
    store(dz + token * dz_stride + (row - token * in.heads) * kHead + column, d_gate);
    store(dx + row * kHead + column, d_input);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) sums[warp][column + i] = own[i];
  __syncthreads();
  for (int at = threadIdx.x; at < kHead; at += kThreads) {
    float sum = 0;
    for (int other = 0; other < kWarps; ++other) sum += sums[other][at];
    dw[static_cast<int64_t>(blockIdx.x) * kHead + at] = sum;
  }
}

}  // namespace

void gated_norm(const GatedNorm& in, void* y, CUstream_st* stream) {
  const int64_t blocks = (in.tokens * in.heads + kWarps - 1) / kWarps;
  norm_and_gate<<<static_cast<unsigned>(blocks < 8 * kMaxGrid ? blocks : 8 * kMaxGrid), kThreads, 0, stream>>>(
      in, static_cast<bf16*>(y));
}

void gated_norm_gradient(const GatedNorm& in, const void* dy, void* dx, void* dz, int64_t dz_stride, float* dw,
                         CUstream_st* stream) {
  norm_and_gate_gradient<<<kGatedNormPartials, kThreads, 0, stream>>>(
      in, static_cast<const bf16*>(dy), static_cast<bf16*>(dx), static_cast<bf16*>(dz), dz_stride, dw);
}

}  // namespace lathe::kernels::cuda
