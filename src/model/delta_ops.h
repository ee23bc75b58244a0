// What a gated delta layer computes around its recurrence. Serving and teaching modes as in model/ops.h.
//
// Threads: any; no state.
#pragma once

#include <ATen/core/Tensor.h>

#include "weights/gradient.h"

namespace lathe::model {

// Causal depthwise convolution over time: y_t[c] = Σ_j w[c, j] x_{t - kernel + 1 + j}[c], summed in fp32. x [n,
// channels]; `before` [kernel - 1, channels] are the inputs before x, constants; weight [channels * kernel]. Returns
// [n, channels].
at::Tensor causal_conv(const at::Tensor& x, const at::Tensor& before, const weights::Parameter& weight, int64_t kernel,
                       weights::GradientSink* sink);

// g = -exp(A_log) softplus(a + dt_bias) <= 0, the logarithm of each head's decay, in fp32. a [n, heads].
at::Tensor decay_gate(const at::Tensor& a, const weights::Parameter& a_log, const weights::Parameter& dt_bias,
                      weights::GradientSink* sink);

}  // namespace lathe::model
