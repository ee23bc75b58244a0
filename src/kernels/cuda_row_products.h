// kernels/row_products.h on a GPU: a bf16 matrix times one fp32 vector, from either side, at the memory's rate.
//
// Rounding: fp32 in a fixed order, another than on a CPU. Memory: in and out are the caller's; nothing is allocated. m
// [rows, columns], rows `stride` elements apart; columns and stride are multiples of 8, m and x aligned to 16 bytes.
// Threads: any. Asynchronous: queued on `stream`. Errors of a launch are left to cudaGetLastError().
#pragma once

#include <cstdint>

struct CUstream_st;

namespace lathe::kernels::cuda {

// y[i] = Σ_j m[i][j] x[j].
void row_dots(const void* m, int64_t rows, int64_t columns, int64_t stride, const float* x, float* y,
              CUstream_st* stream);

// How many rows of partial sums weighted_row_sum() writes.
constexpr int64_t kRowSumPartials = 64;

// The rows of `partial` [kRowSumPartials, columns] add up to y[j] = Σ_i x[i] m[i][j].
void weighted_row_sum(const void* m, int64_t rows, int64_t columns, int64_t stride, const float* x, float* partial,
                      CUstream_st* stream);

}  // namespace lathe::kernels::cuda
