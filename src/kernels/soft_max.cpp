#include "kernels/soft_max.h"

#include <algorithm>
#include <cmath>

#include "base/clones.h"
#include "kernels/bf16.h"
#include "kernels/lanes.h"

namespace lathe::kernels {
namespace {

// The largest number; a NaN is passed over (and makes every sum of e^x NaN).
[[gnu::always_inline]] inline float row_max(const uint16_t* x, int64_t n) {
  float lanes[kLanes];
  for (float& lane : lanes) lane = widen(x[0]);
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = std::max(lanes[l], widen(x[i + l]));
  }
  for (int64_t i = whole; i < n; ++i) lanes[0] = std::max(lanes[0], widen(x[i]));
  return *std::max_element(lanes, lanes + kLanes);
}

}  // namespace

LATHE_CLONES SoftMaxRow soft_max_row(const uint16_t* __restrict logits, int64_t n, int64_t target) {
  const float highest = row_max(logits, n);
  const float sum = lane_sum(
      n, [=](int64_t i) __attribute__((always_inline)) { return exp_negative(widen(logits[i]) - highest); });
  const float log_sum = highest + std::log(sum);
  return {log_sum, widen(logits[target]) - log_sum};
}

LATHE_CLONES void soft_max_gradient_row(uint16_t* __restrict logits, int64_t n, int64_t target, float slope,
                                        float log_sum) {
  const float of_target = slope * (1.0F - exp_negative(widen(logits[target]) - log_sum));
  for (int64_t i = 0; i < n; ++i) logits[i] = narrow(-slope * exp_negative(widen(logits[i]) - log_sum));
  logits[target] = narrow(of_target);
}

LATHE_CLONES float attention_row(uint16_t* __restrict scores, int64_t keys, int64_t visible, float scale) {
  const float highest = scale * row_max(scores, visible);
  const float sum = lane_sum(
      visible, [=](int64_t j)
                   __attribute__((always_inline)) { return exp_negative(scale * widen(scores[j]) - highest); });
  const float share = 1.0F / sum;
  for (int64_t j = 0; j < visible; ++j) scores[j] = narrow(share * exp_negative(scale * widen(scores[j]) - highest));
  std::fill(scores + visible, scores + keys, uint16_t{0});
  return highest + std::log(sum);
}

LATHE_CLONES void attention_backward_row(uint16_t* __restrict scores, uint16_t* __restrict dp, int64_t keys,
                                         int64_t visible, float scale, float log_sum) {
  for (int64_t j = 0; j < visible; ++j) scores[j] = narrow(exp_negative(scale * widen(scores[j]) - log_sum));
  std::fill(scores + visible, scores + keys, uint16_t{0});
  const float dot = lane_sum(
      visible, [=](int64_t j) __attribute__((always_inline)) { return widen(scores[j]) * widen(dp[j]); });
  for (int64_t j = 0; j < visible; ++j) dp[j] = narrow(scale * widen(scores[j]) * (widen(dp[j]) - dot));
  std::fill(dp + visible, dp + keys, uint16_t{0});
}

}  // namespace lathe::kernels
