#include "kernels/serving.h"

#include <algorithm>
#include <cmath>

#include "base/clones.h"
#include "kernels/bf16.h"
#include "kernels/lanes.h"

namespace lathe::kernels {
namespace {

template <int kRows>
[[gnu::always_inline]] inline void linear_rows(const uint16_t* w, const float* x, const uint16_t* bias, uint16_t* y,
                                               int64_t in, int64_t out, int64_t begin, int64_t end) {
  for (int64_t o = begin; o < end; ++o) {
    float sums[kRows];
    dot_rows<kRows>(w + o * in, x, in, sums);
    for (int row = 0; row < kRows; ++row) y[row * out + o] = narrow(sums[row] + (bias ? widen(bias[o]) : 0.0F));
  }
}

LATHE_CLONES void linear_1(const uint16_t* w, const float* x, const uint16_t* bias, uint16_t* y, int64_t in,
                           int64_t out, int64_t begin, int64_t end) {
  linear_rows<1>(w, x, bias, y, in, out, begin, end);
}
LATHE_CLONES void linear_2(const uint16_t* w, const float* x, const uint16_t* bias, uint16_t* y, int64_t in,
                           int64_t out, int64_t begin, int64_t end) {
  linear_rows<2>(w, x, bias, y, in, out, begin, end);
}
LATHE_CLONES void linear_3(const uint16_t* w, const float* x, const uint16_t* bias, uint16_t* y, int64_t in,
                           int64_t out, int64_t begin, int64_t end) {
  linear_rows<3>(w, x, bias, y, in, out, begin, end);
}
LATHE_CLONES void linear_4(const uint16_t* w, const float* x, const uint16_t* bias, uint16_t* y, int64_t in,
                           int64_t out, int64_t begin, int64_t end) {
  linear_rows<4>(w, x, bias, y, in, out, begin, end);
}

// σ(x) from e^-|x|, which never overflows.
[[gnu::always_inline]] inline float sigmoid(float x) {
  const float e = exp_negative(-std::fabs(x));
  return (x >= 0 ? 1.0F : e) / (1.0F + e);
}

[[gnu::always_inline]] inline float inverse_rms(const uint16_t* x, int64_t n, float eps) {
  const float sum = lane_sum(
      n, [=](int64_t i) __attribute__((always_inline)) { return widen(x[i]) * widen(x[i]); });
  return 1.0F / std::sqrt(sum / static_cast<float>(n) + eps);
}

}  // namespace

void linear_few_rows(const uint16_t* w, const float* x, const uint16_t* bias, uint16_t* y, int64_t rows, int64_t in,
                     int64_t out, int64_t begin, int64_t end) {
  switch (rows) {
    case 1:
      return linear_1(w, x, bias, y, in, out, begin, end);
    case 2:
      return linear_2(w, x, bias, y, in, out, begin, end);
    case 3:
      return linear_3(w, x, bias, y, in, out, begin, end);
    default:
      return linear_4(w, x, bias, y, in, out, begin, end);
  }
}

LATHE_CLONES void widen_all(const uint16_t* __restrict x, float* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = widen(x[i]);
}

LATHE_CLONES void rms_norm_row(const uint16_t* __restrict x, const uint16_t* __restrict w, uint16_t* __restrict y,
                               int64_t n, float eps) {
  const float r = inverse_rms(x, n, eps);
  for (int64_t i = 0; i < n; ++i) y[i] = narrow(rounded(widen(x[i]) * r) * widen(w[i]));
}

LATHE_CLONES void rms_norm_backward_row(const uint16_t* __restrict dy, const uint16_t* __restrict x,
                                        const uint16_t* __restrict w, uint16_t* __restrict dx, float* __restrict dw,
                                        int64_t n, float eps) {
  const float r = inverse_rms(x, n, eps);
  const float dot = lane_sum(
      n, [=](int64_t i) __attribute__((always_inline)) { return widen(dy[i]) * widen(w[i]) * (widen(x[i]) * r); });
  const float mean = dot / static_cast<float>(n);
  for (int64_t i = 0; i < n; ++i) {
    const float normed = widen(x[i]) * r;
    dw[i] += widen(dy[i]) * normed;
    dx[i] = narrow(r * (widen(dy[i]) * widen(w[i]) - normed * mean));
  }
}

LATHE_CLONES void rotate_head(const uint16_t* __restrict x, const uint16_t* __restrict cos,
                              const uint16_t* __restrict sin, uint16_t* __restrict y, int64_t half) {
  for (int64_t j = 0; j < half; ++j) {
    const float a = widen(x[j]), b = widen(x[j + half]), c = widen(cos[j]), s = widen(sin[j]);
    y[j] = narrow(rounded(a * c) - rounded(b * s));
    y[j + half] = narrow(rounded(b * c) + rounded(a * s));
  }
}

LATHE_CLONES void silu_mul_row(const uint16_t* __restrict gate, const uint16_t* __restrict up, uint16_t* __restrict y,
                               int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = widen(gate[i]);
    y[i] = narrow(rounded(x * sigmoid(x)) * widen(up[i]));
  }
}

LATHE_CLONES void silu_mul_backward_row(const uint16_t* __restrict dy, const uint16_t* __restrict gate,
                                        const uint16_t* __restrict up, uint16_t* __restrict d_gate,
                                        uint16_t* __restrict d_up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = widen(dy[i]), x = widen(gate[i]), s = sigmoid(x);
    d_up[i] = narrow(g * rounded(x * s));
    d_gate[i] = narrow(rounded(g * widen(up[i])) * (s * (1.0F + x * (1.0F - s))));
  }
}

}  // namespace lathe::kernels
