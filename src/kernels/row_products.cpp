#include "kernels/row_products.h"

#include <algorithm>

#include "base/clones.h"
#include "kernels/bf16.h"
#include "kernels/lanes.h"

namespace lathe::kernels {
namespace {

// Rows whose contributions are added in registers before they go to memory.
constexpr int64_t kRows = 8;

}  // namespace

LATHE_CLONES void row_dots(const uint16_t* __restrict m, int64_t rows, int64_t columns, int64_t stride,
                           const float* __restrict x, float* __restrict y) {
  for (int64_t i = 0; i < rows; ++i) dot_rows<1>(m + i * stride, x, columns, y + i);
}

LATHE_CLONES void weighted_row_sum(const uint16_t* __restrict m, int64_t rows, int64_t columns, int64_t stride,
                                   const float* __restrict x, float* __restrict y) {
  std::fill_n(y, columns, 0.0F);
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    const uint16_t* row = m + i * stride;
    for (int64_t j = 0; j < columns; ++j) {
      float sum = y[j];
      for (int64_t k = 0; k < kRows; ++k) sum += x[i + k] * widen(row[k * stride + j]);
      y[j] = sum;
    }
  }
  for (; i < rows; ++i) {
    const uint16_t* row = m + i * stride;
    for (int64_t j = 0; j < columns; ++j) y[j] += x[i] * widen(row[j]);
  }
}

}  // namespace lathe::kernels
