// What several loops over rows share: sums that vectorise without being reordered, and e^x. For function clones
// (base/clones.h), into which all of this is inlined.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/bf16.h"

namespace lathe::kernels {

constexpr int64_t kLanes = 32;

// e^x for x <= 0 to about 2 units of fp32's last place: 2^i 2^f, the second by a polynomial. Flushes to 0 below e^-87.
[[gnu::always_inline]] inline float exp_negative(float x) {
  const float scaled = std::max(x, -87.0F) * 1.44269504F;
  const float whole = std::floor(scaled);
  const float f = scaled - whole;
  float p = 1.8775767e-3F;
  p = p * f + 8.9893397e-3F;
  p = p * f + 5.5826318e-2F;
  p = p * f + 2.4015361e-1F;
  p = p * f + 6.9315308e-1F;
  p = p * f + 9.9999994e-1F;
  return p * std::bit_cast<float>((static_cast<int32_t>(whole) + 127) << 23);
}

// Σ f(i), i < n: sums per lane, added up at the end.
template <class F>
[[gnu::always_inline]] inline float lane_sum(int64_t n, F f) {
  float lanes[kLanes] = {};
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += f(i + l);
  }
  for (int64_t i = whole; i < n; ++i) lanes[i - whole] += f(i);
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

// Dot products of one weight row with kRows rows of x; sums per lane, added up at the end.
template <int kRows>
[[gnu::always_inline]] inline void dot_rows(const uint16_t* __restrict w, const float* __restrict x, int64_t in,
                                            float* __restrict sums) {
  float lanes[kRows][kLanes] = {};
  const int64_t whole = in - in % kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    for (int row = 0; row < kRows; ++row) {
      for (int64_t l = 0; l < kLanes; ++l) lanes[row][l] += widen(w[k + l]) * x[row * in + k + l];
    }
  }
  for (int64_t k = whole; k < in; ++k) {
    for (int row = 0; row < kRows; ++row) lanes[row][k - whole] += widen(w[k]) * x[row * in + k];
  }
  for (int row = 0; row < kRows; ++row) {
    for (int64_t width = kLanes / 2; width > 0; width /= 2) {
      for (int64_t l = 0; l < width; ++l) lanes[row][l] += lanes[row][l + width];
    }
    sums[row] = lanes[row][0];
  }
}

}  // namespace lathe::kernels
