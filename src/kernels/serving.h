// CPU kernels of a decoder layer in bf16: one pass each where ATen needs several, and matrix times few rows at the
// speed of memory.
//
// Why: decoding reads every weight once per token; what limits it is memory, and the calls between. A correction has
// few rows too. bench/cpu_bench.cpp shows the gain. Their ATen twins in model/ops.cpp are the oracle (ops_test.cpp) and
// the path of everything else.
// Rounding: to bf16 at the points where transformers rounds, so that both agree.
// Threads: pure on their ranges; the caller splits rows over threads.
#pragma once

#include <cstdint>

namespace lathe::kernels {

// Most rows that linear_few_rows() takes: beyond, a matrix product is faster.
constexpr int64_t kFewRows = 4;

// y[n][o] = Σ_k w[o][k] x[n][k] + bias[o] for o in [begin, end). w [out, in] bf16; x [rows, in] fp32; y [rows, out]
// bf16; bias may be null. Reads w once: 2 (end - begin) in bytes.
void linear_few_rows(const uint16_t* w, const float* x, const uint16_t* bias, uint16_t* y, int64_t rows, int64_t in,
                     int64_t out, int64_t begin, int64_t end);

void widen_all(const uint16_t* x, float* y, int64_t n);

// One row: y = w * bf16(x / sqrt(mean(x²) + eps)).
void rms_norm_row(const uint16_t* x, const uint16_t* w, uint16_t* y, int64_t n, float eps);

// Its backward pass, n = x / sqrt(mean(x²) + eps), all in fp32: dn = dy w, dx = r (dn - n mean(dn n)), dw += dy n.
void rms_norm_backward_row(const uint16_t* dy, const uint16_t* x, const uint16_t* w, uint16_t* dx, float* dw, int64_t n,
                           float eps);

// One head of one row: pairs (j, j + half) of x rotated by cos[j], sin[j] into y.
void rotate_head(const uint16_t* x, const uint16_t* cos, const uint16_t* sin, uint16_t* y, int64_t half);

// y[i] = bf16(silu(gate[i])) * up[i].
void silu_mul_row(const uint16_t* gate, const uint16_t* up, uint16_t* y, int64_t n);

// Its backward pass.
void silu_mul_backward_row(const uint16_t* dy, const uint16_t* gate, const uint16_t* up, uint16_t* d_gate,
                           uint16_t* d_up, int64_t n);

}  // namespace lathe::kernels
