// What comes after the gated delta rule: RMS norm over heads of 128, times silu of the gate; with its gradient.
//
//   y = T(w T(n) silu(z)),  n = x r,  r = 1 / sqrt(mean(x²) + eps)
//
// Rows are heads of tokens. x, y and their gradients are bf16 without gaps, w fp32 or bf16; z is bf16 with tokens
// z_stride numbers apart. Rounds where model/layers/gated_delta.cpp's separate operations round, forward; fp32
// backward.
// Memory: in and out are the caller's; nothing is allocated. Pointers are aligned to 8 bytes, strides multiples of 4.
// Threads: any. Asynchronous: queued on `stream`. Errors of a launch are left to cudaGetLastError(). The same bits on
// every run.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace lathe::kernels::cuda {

constexpr int64_t kGatedNormPartials = 1056;  // rows of partial sums of dw

struct GatedNorm {
  int64_t tokens = 0, heads = 0;
  const void* x = nullptr;  // [tokens, heads, 128]
  const void* z = nullptr;
  int64_t z_stride = 0;
  const void* w = nullptr;  // [128]
  bool wide_w = false;      // w is fp32
  float eps = 0;
};

void gated_norm(const GatedNorm& in, void* y, CUstream_st* stream);

// dx [tokens, heads, 128]; dz has tokens dz_stride apart; the rows of dw [kGatedNormPartials, 128] fp32 add up to w's
// gradient.
void gated_norm_gradient(const GatedNorm& in, const void* dy, void* dx, void* dz, int64_t dz_stride, float* dw,
                         CUstream_st* stream);

}  // namespace lathe::kernels::cuda
