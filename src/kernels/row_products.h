// Products of a bf16 matrix with one fp32 vector, from either side: a projection of rank 1, without a wide copy of the
// matrix.
//
// Rounding: fp32; dots in lanes along a row, sums over rows one after the other. The order of additions is fixed.
// Memory: nothing is allocated. m [rows, columns], rows `stride` elements apart.
// Threads: pure on their ranges; split dots by rows, sums by columns.
#pragma once

#include <cstdint>

namespace lathe::kernels {

// y[i] = Σ_j m[i][j] x[j].
void row_dots(const uint16_t* m, int64_t rows, int64_t columns, int64_t stride, const float* x, float* y);

// y[j] = Σ_i x[i] m[i][j].
void weighted_row_sum(const uint16_t* m, int64_t rows, int64_t columns, int64_t stride, const float* x, float* y);

}  // namespace lathe::kernels
