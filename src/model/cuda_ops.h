// The operations of model/ops.h on a GPU, over the kernels of kernels/cuda_layers.h; the ATen forms in ops.cpp are the
// oracle (gpu_ops_test.cpp).
//
// Only in a build with CUDA; ops.cpp calls them when an input is on a GPU.
// Threads: any. Asynchronous: on the calling thread's stream.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/ops.h"

namespace lathe::model::cuda {

// On a GPU, bf16 or fp32, at most three dimensions, the last without gaps.
bool can_run(const at::Tensor& x);

// w c(n), or c((1 + w) n) where `zero_centred`; n = x / sqrt(mean(x²) + eps) over the last dimension. With autograd on
// and a sink, differentiable in x, and the weight's gradient goes to the sink.
at::Tensor rms_norm(const at::Tensor& x, const weights::Parameter& weight, double eps, NormStyle style,
                    weights::GradientSink* sink);

// Without autograd; ops.cpp puts forward and backward together. `back`: by the same angles the other way.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back);
// gate_up [N, 2I], dy [N, I], both contiguous.
at::Tensor silu_mul(const at::Tensor& gate_up);
at::Tensor silu_mul_backward(const at::Tensor& dy, const at::Tensor& gate_up);

// ops.h says what.
SoftMaxStatistics soft_max_statistics(const at::Tensor& logits, const at::Tensor& targets);
void soft_max_gradient_(at::Tensor& logits, const at::Tensor& targets, const at::Tensor& slopes,
                        const at::Tensor& log_sum);

}  // namespace lathe::model::cuda
