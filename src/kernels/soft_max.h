// Rows of a soft-max in bf16, in place: the language model's head, and attention's scores.
//
// Rounding: exponents and sums in fp32; results to bf16 once.
// Memory: nothing is allocated.
// Threads: pure on their row; the caller splits rows over threads.
#pragma once

#include <cstdint>

namespace lathe::kernels {

// Of one row of logits: log Σ e^l, and log p(target) = l[target] - log Σ e^l.
struct SoftMaxRow {
  float log_sum, log_p;
};
SoftMaxRow soft_max_row(const uint16_t* logits, int64_t n, int64_t target);

// The row becomes slope (onehot(target) - p).
void soft_max_gradient_row(uint16_t* logits, int64_t n, int64_t target, float slope, float log_sum);

// Attention of one query: scores [keys] become p = soft-max(scale s) over the first `visible` keys, 0 for the rest.
// Returns log Σ e^(scale s).
float attention_row(uint16_t* scores, int64_t keys, int64_t visible, float scale);

// Its backward pass, the scores computed again: scores become p, and dp [keys] becomes ds = scale p (dp - Σ p dp).
void attention_backward_row(uint16_t* scores, uint16_t* dp, int64_t keys, int64_t visible, float scale, float log_sum);

}  // namespace lathe::kernels
