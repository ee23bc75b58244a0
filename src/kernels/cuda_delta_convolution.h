// What comes before the gated delta rule, in one pass over memory: causal convolution over time with four taps, SiLU,
// and unit length of queries and keys; with its gradient.
//
//   c_t = Σ_j w_j x_{t - 3 + j}     y = silu(c)     v = y     k = y / sqrt(Σ y² + eps)     q = y / sqrt(Σ y² + eps) /
//   sqrt(128)
//
// Channels are those of the queries' heads, then the keys', then the values', 128 each. bf16 in and out, fp32 between;
// c and y are rounded where the separate operations of model/delta_ops.h round.
// Memory: in and out are the caller's; nothing is allocated. Pointers are aligned to 8 bytes, strides multiples of 4.
// Threads: any. Asynchronous: queued on `stream`. Errors of a launch are left to cudaGetLastError(). The same bits on
// every run.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace lathe::kernels::cuda {

constexpr int64_t kDeltaTaps = 4;
constexpr int64_t kConvolutionStrip = 64;  // tokens that one warp walks over

struct DeltaConvolution {
  int64_t tokens = 0, key_heads = 0, value_heads = 0;
  const void* x = nullptr;  // [tokens, channels], rows x_stride apart
  int64_t x_stride = 0;
  const void* before = nullptr;  // [3, channels]: what came before x
  const void* taps = nullptr;    // [channels, 4]
  float eps = 0;

  int64_t heads() const { return 2 * key_heads + value_heads; }
  int64_t channels() const { return heads() * 128; }
  int64_t strips() const { return (tokens + kConvolutionStrip - 1) / kConvolutionStrip; }
};

// q, k, v without gaps.
void delta_convolution(const DeltaConvolution& in, void* q, void* k, void* v, CUstream_st* stream);

// dx has rows dx_stride apart. The rows of d_taps [strips, channels, 4] fp32 add up to the taps' gradient. `before` has
// no gradient.
void delta_convolution_gradient(const DeltaConvolution& in, const void* dq, const void* dk, const void* dv, void* dx,
                                int64_t dx_stride, float* d_taps, CUstream_st* stream);

}  // namespace lathe::kernels::cuda
