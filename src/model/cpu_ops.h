// The operations of model/ops.h on a CPU in bf16, over the kernels of kernels/serving.h. ops.cpp calls each function
// when can_run() is true for its input. The results agree with the ATen forms there up to the order of sums; bits do
// not depend on the number of threads.
//
// Threads: any; work is split with at::parallel_for.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/ops.h"

namespace lathe::model::cpu {

// bf16, on the CPU, rows without gaps.
bool can_run(const at::Tensor& x);

// Without autograd. x [n, in], n <= kernels::kFewRows; w [out, in]; bias [out] or undefined.
at::Tensor linear_few_rows(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias);
bool few_rows(const at::Tensor& x);

// Plain norms with bf16 weights. With autograd on and a sink, differentiable in x, and the weight's gradient goes to
// the sink.
at::Tensor rms_norm(const at::Tensor& x, const weights::Parameter& weight, double eps, weights::GradientSink* sink);

// Without autograd; ops.cpp puts forward and backward together. x [N, heads, K], all of K rotating, by the tables [N,
// K/2]; `back`: by the same angles the other way.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back);
// gate_up [N, 2I], dy [N, I], both contiguous.
at::Tensor silu_mul(const at::Tensor& gate_up);
at::Tensor silu_mul_backward(const at::Tensor& dy, const at::Tensor& gate_up);

// ops.h says what. logits contiguous.
SoftMaxStatistics soft_max_statistics(const at::Tensor& logits, const at::Tensor& targets);
void soft_max_gradient_(at::Tensor& logits, const at::Tensor& targets, const at::Tensor& slopes,
                        const at::Tensor& log_sum);

}  // namespace lathe::model::cpu
