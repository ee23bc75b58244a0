#include "kernels/squares.h"

#include "base/clones.h"
#include "kernels/bf16.h"

namespace lathe::kernels {
namespace {

constexpr int64_t kLanes = 32;

template <class T>
[[gnu::always_inline]] inline double squares_of_row(const T* __restrict g, int64_t n) {
  float lanes[kLanes] = {};
  const int64_t whole = n - n % kLanes;
  for (int64_t j = 0; j < whole; j += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += widen(g[j + lane]) * widen(g[j + lane]);
  }
  double sum = 0;
  for (int64_t j = whole; j < n; ++j) sum += widen(g[j]) * widen(g[j]);
  for (const float lane : lanes) sum += lane;
  return sum;
}

template <class T>
[[gnu::always_inline]] inline void add_squares_of_row(const T* __restrict g, int64_t n, float* __restrict sums) {
  for (int64_t j = 0; j < n; ++j) sums[j] += widen(g[j]) * widen(g[j]);
}

}  // namespace

// One clone each: attributes of this kind do not go on templates.
LATHE_CLONES void row_squares(const float* g, int64_t rows, int64_t columns, double* sums) {
  for (int64_t i = 0; i < rows; ++i) sums[i] = squares_of_row(g + i * columns, columns);
}
LATHE_CLONES void row_squares(const uint16_t* g_bf16, int64_t rows, int64_t columns, double* sums) {
  for (int64_t i = 0; i < rows; ++i) sums[i] = squares_of_row(g_bf16 + i * columns, columns);
}
LATHE_CLONES void add_column_squares(const float* g, int64_t rows, int64_t columns, float* sums) {
  for (int64_t i = 0; i < rows; ++i) add_squares_of_row(g + i * columns, columns, sums);
}
LATHE_CLONES void add_column_squares(const uint16_t* g_bf16, int64_t rows, int64_t columns, float* sums) {
  for (int64_t i = 0; i < rows; ++i) add_squares_of_row(g_bf16 + i * columns, columns, sums);
}

}  // namespace lathe::kernels
