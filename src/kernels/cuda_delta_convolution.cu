#include "kernels/cuda_common.cuh"
#include "kernels/cuda_delta_convolution.h"

namespace lathe::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kHead = 128;
constexpr int kEach = kHead / kWarp;  // channels of a lane
constexpr int kTaps = kDeltaTaps;

using Four = Pack<bf16, kEach>;

struct Heads {
  const bf16 *q, *k, *v;
};

__device__ __forceinline__ int64_t heads_of(const DeltaConvolution& in) {
  return 2 * in.key_heads + in.value_heads;
}

// A warp's head, and the lane's channels in it.
struct Lane {
  int64_t head, channel, first, last;  // first, last: the strip's tokens
  __device__ explicit Lane(const DeltaConvolution& in) {
    head = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
    channel = head * kHead + threadIdx.x % kWarp * kEach;
    first = blockIdx.y * kConvolutionStrip;
    last = min(first + kConvolutionStrip, in.tokens);
  }
};

__device__ __forceinline__ void load_taps(const DeltaConvolution& in, int64_t channel, float (&taps)[kEach][kTaps]) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const auto four = load<bf16, kTaps>(static_cast<const bf16*>(in.taps) + (channel + i) * kTaps);
#pragma unroll
    for (int j = 0; j < kTaps; ++j) taps[i][j] = widen(four.at[j]);
  }
}

// x of a token, which may lie before the first.
__device__ __forceinline__ Four load_x(const DeltaConvolution& in, int64_t token, int64_t channel) {
  if (token < 0)
    return load<bf16, kEach>(static_cast<const bf16*>(in.before) + (token + kTaps - 1) * heads_of(in) * kHead +
                             channel);
  return load<bf16, kEach>(static_cast<const bf16*>(in.x) + token * in.x_stride + channel);
}

// The last four tokens' numbers of a lane, the newest at kTaps - 1.
struct Window {
  float at[kEach][kTaps] = {};
  __device__ __forceinline__ void push(const float (&x)[kEach]) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j + 1 < kTaps; ++j) at[i][j] = at[i][j + 1];
      at[i][kTaps - 1] = x[i];
    }
  }
  __device__ __forceinline__ void push(const Four& x) {
    float wide[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) wide[i] = widen(x.at[i]);
    push(wide);
  }
};

// As ATen adds them up: the first tap's product, then the others fused.
__device__ __forceinline__ float convolved(const float (&x)[kTaps], const float (&taps)[kTaps]) {
  float c = x[0] * taps[0];
#pragma unroll
  for (int j = 1; j < kTaps; ++j) c = fmaf(x[j], taps[j], c);
  return rounded<bf16>(c);
}

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0F / (1.0F + __expf(-x));
}

// What y of a head is multiplied by: one, or what makes it a unit, and the queries' scale.
__device__ __forceinline__ float scale_of(const DeltaConvolution& in, int64_t head) {
  return head < in.key_heads ? rsqrtf(static_cast<float>(kHead)) : 1.0F;
}

__global__ void __launch_bounds__(kThreads) convolve(const DeltaConvolution in, bf16* q, bf16* k, bf16* v) {
  const Lane lane(in);
  if (lane.head >= heads_of(in)) return;
  float taps[kEach][kTaps];
  load_taps(in, lane.channel, taps);
  Window x;
  for (int64_t t = lane.first - kTaps + 1; t < lane.first; ++t) x.push(load_x(in, t, lane.channel));
  const bool normed = lane.head < 2 * in.key_heads;
  const float scale = scale_of(in, lane.head);
  const int64_t part = lane.head < in.key_heads ? 0 : normed ? in.key_heads : 2 * in.key_heads;
  const int64_t stride = (normed ? in.key_heads : in.value_heads) * kHead;
  bf16* out = (lane.head < in.key_heads ? q : normed ? k : v) + lane.channel - part * kHead;
  Four next = load_x(in, lane.first, lane.channel);  // a token ahead: its way from memory is hidden
#pragma unroll 4
  for (int64_t t = lane.first; t < lane.last; ++t) {
    x.push(next);
    if (t + 1 < lane.last) next = load_x(in, t + 1, lane.channel);
    float y[kEach], sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float c = convolved(x.at[i], taps[i]);
      y[i] = rounded<bf16>(c * sigmoid(c));
      sum += y[i] * y[i];
    }
    const float factor = normed ? rsqrtf(lane_sum<kWarp>(sum) + in.eps) * scale : 1.0F;
    Four result;
#pragma unroll
    for (int i = 0; i < kEach; ++i) result.at[i] = narrow<bf16>(y[i] * factor);
    store(out + t * stride, result);
  }
}

// dc of one token: back through unit length and SiLU.
__device__ __forceinline__ void before_silu(const Window& x, const float (&taps)[kEach][kTaps], const Four& d,
                                            bool normed, float scale, float eps, float (&dc)[kEach]) {
  float c[kEach], y[kEach], squares = 0, dot = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    c[i] = convolved(x.at[i], taps[i]);
    y[i] = rounded<bf16>(c[i] * sigmoid(c[i]));
    squares += y[i] * y[i];
    dot += y[i] * widen(d.at[i]);
  }
  float factor = 1, along = 0;
  if (normed) {
    const float r = rsqrtf(lane_sum<kWarp>(squares) + eps);
    factor = r * scale;
    along = lane_sum<kWarp>(dot) * factor * r * r;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const float s = sigmoid(c[i]);
    dc[i] = (widen(d.at[i]) * factor - y[i] * along) * s * (1.0F + c[i] * (1.0F - s));
  }
}

// A warp goes three tokens beyond its strip: their convolutions read the strip's last inputs.
__global__ void __launch_bounds__(kThreads)
    convolve_gradient(const DeltaConvolution in, const Heads d, bf16* dx, int64_t dx_stride, float* d_taps) {
  const Lane lane(in);
  if (lane.head >= heads_of(in)) return;
  float taps[kEach][kTaps], tap_sums[kEach][kTaps] = {};
  load_taps(in, lane.channel, taps);
  Window x, dc;
  for (int64_t t = lane.first - kTaps + 1; t < lane.first; ++t) x.push(load_x(in, t, lane.channel));
  const bool normed = lane.head < 2 * in.key_heads;
  const float scale = scale_of(in, lane.head);
  const int64_t part = lane.head < in.key_heads ? 0 : normed ? in.key_heads : 2 * in.key_heads;
  const int64_t stride = (normed ? in.key_heads : in.value_heads) * kHead;
  const bf16* from = (lane.head < in.key_heads ? d.q : normed ? d.k : d.v) + lane.channel - part * kHead;
  const int64_t end = min(lane.last + kTaps - 1, in.tokens);  // of what is read
  Four next_x = load_x(in, lane.first, lane.channel), next_d = load<bf16, kEach>(from + lane.first * stride);
#pragma unroll 2
  for (int64_t t = lane.first; t < lane.last + kTaps - 1; ++t) {
    float newest[kEach] = {};
    if (t < end) {
      const Four d = next_d;
      x.push(next_x);
      if (t + 1 < end) {
        next_x = load_x(in, t + 1, lane.channel);
        next_d = load<bf16, kEach>(from + (t + 1) * stride);
      }
      before_silu(x, taps, d, normed, scale, in.eps, newest);
    }
    dc.push(newest);
    if (t < lane.last) {
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < kTaps; ++j) tap_sums[i][j] += newest[i] * x.at[i][j];
    }
    const int64_t to = t - kTaps + 1;
    if (to < lane.first) continue;
    Four result;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) sum += taps[i][j] * dc.at[i][kTaps - 1 - j];
      result.at[i] = narrow<bf16>(sum);
    }
    store(dx + to * dx_stride + lane.channel, result);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    Pack<float, kTaps> sums;
#pragma unroll
    for (int j = 0; j < kTaps; ++j) sums.at[j] = tap_sums[i][j];
    store(d_taps + (blockIdx.y * heads_of(in) * kHead + lane.channel + i) * kTaps, sums);
  }
}

dim3 grid_of(const DeltaConvolution& in) {
  constexpr int kHeads = kThreads / kWarp;
  return {static_cast<unsigned>((in.heads() + kHeads - 1) / kHeads), static_cast<unsigned>(in.strips())};
}

}  // namespace

void delta_convolution(const DeltaConvolution& in, void* q, void* k, void* v, CUstream_st* stream) {
  convolve<<<grid_of(in), kThreads, 0, stream>>>(in, static_cast<bf16*>(q), static_cast<bf16*>(k),
                                                 static_cast<bf16*>(v));
}

void delta_convolution_gradient(const DeltaConvolution& in, const void* dq, const void* dk, const void* dv, void* dx,
                                int64_t dx_stride, float* d_taps, CUstream_st* stream) {
  const Heads d{static_cast<const bf16*>(dq), static_cast<const bf16*>(dk), static_cast<const bf16*>(dv)};
  convolve_gradient<<<grid_of(in), kThreads, 0, stream>>>(in, d, static_cast<bf16*>(dx), dx_stride, d_taps);
}

}  // namespace lathe::kernels::cuda
