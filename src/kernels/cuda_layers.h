// CUDA kernels of a decoder layer's small operations: one pass over memory each, where ATen needs several.
//
// Numbers are bf16 or fp32 (`T` below), arithmetic is fp32. Rounding: to T at the points where transformers rounds, as
// the ATen twins in model/ops.cpp do, which are the oracle. Rows may lie apart: q and k are views into the fused qkv.
// Outputs have no gaps.
// Memory: in and out are the caller's; nothing is allocated.
// Threads: any. Asynchronous: queued on `stream`. Errors of a launch are left to cudaGetLastError().
#pragma once

#include <cstdint>

struct CUstream_st;

namespace lathe::kernels::cuda {

using Stream = CUstream_st*;

enum class Number { kBf16, kFp32 };

// rows = outer * inner rows of `columns` numbers; row (o, i) begins at o * outer_stride + i * inner_stride, in numbers.
struct Rows {
  int64_t outer = 0, inner = 1;
  int64_t outer_stride = 0, inner_stride = 0;
  int64_t columns = 0;
  int64_t count() const { return outer * inner; }
};

// y = w T(n), or T((1 + w) n) where `zero_centred`; n = x r with r = 1 / sqrt(mean(x²) + eps). w may have another type
// than x; then y has the wider one, x's where `zero_centred`. r [rows] fp32 is written for the backward pass unless
// null.
void rms_norm(const void* x, const Rows& rows, Number x_type, const void* w, Number w_type, void* y, float* r,
              float eps, bool zero_centred, Stream stream);

// How many rows of partial sums rms_norm_backward() writes.
constexpr int64_t kNormPartials = 264;

// With ŵ = w or 1 + w: dn = dy ŵ, dx = r (dn - n mean(dn n)); the rows of dw [kNormPartials, columns] fp32 add up to Σ
// dy n. dy and dx have no gaps; dx has x's type, dy the type of y.
void rms_norm_backward(const void* dy, const void* x, const Rows& rows, Number x_type, const void* w, Number w_type,
                       const float* r, void* dx, float* dw, bool zero_centred, Stream stream);

// Rotates half-split pairs (j, j + rotating / 2) of the first `rotating` numbers of each row by the tables
// [outer, rotating / 2]; the others are copied. `backward` turns the other way, which is the gradient. cos, sin, y: x's
// type.
void rotate(const void* x, const Rows& rows, Number type, int64_t rotating, const void* cos, const void* sin, void* y,
            bool backward, Stream stream);

// y [rows, inner] = T(silu(gate)) up, of gate_up [rows, 2 inner] with gates before ups.
void silu_mul(const void* gate_up, int64_t rows, int64_t inner, Number type, void* y, Stream stream);
// Its gradient [rows, 2 inner].
void silu_mul_backward(const void* dy, const void* gate_up, int64_t rows, int64_t inner, Number type, void* d_gate_up,
                       Stream stream);

// Of logits [rows, vocabulary]: log_sum = log Σ e^l and log_p = log p(target), both [rows] fp32.
void soft_max_statistics(const void* logits, int64_t rows, int64_t vocabulary, Number type, const int64_t* target,
                         float* log_sum, float* log_p, Stream stream);
// The logits become slope (onehot(target) - p), rounded to their type: the gradient of Σ slope log p(target).
void soft_max_gradient(void* logits, int64_t rows, int64_t vocabulary, Number type, const int64_t* target,
                       const float* slope, const float* log_sum, Stream stream);

}  // namespace lathe::kernels::cuda
