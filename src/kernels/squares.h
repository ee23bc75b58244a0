// Sums of squares of a block of rows: what norms of a gradient are made of.
//
// Rounding: fp32 in lanes along a row, and over the rows of the block; the order of additions is fixed.
// Memory: nothing is allocated.
// Threads: pure on their ranges.
#pragma once

#include <cstdint>

namespace lathe::kernels {

// g [rows, columns], contiguous. sums[i] = Σ_j g[i][j]².
void row_squares(const float* g, int64_t rows, int64_t columns, double* sums);
void row_squares(const uint16_t* g_bf16, int64_t rows, int64_t columns, double* sums);

// sums[j] += Σ_i g[i][j]².
void add_column_squares(const float* g, int64_t rows, int64_t columns, float* sums);
void add_column_squares(const uint16_t* g_bf16, int64_t rows, int64_t columns, float* sums);

}  // namespace lathe::kernels
