// A gated delta layer between its projections on a GPU, as one node of autograd over four kernels: convolution with
// SiLU and unit length, the delta rule (cuda_delta_rule.h), and the gated norm; backwards the same.
// model/layers/gated_delta.cpp does it operation by operation and is the oracle (gpu_delta_layer_test.cpp).
//
// Only in a build with CUDA.
// Memory: for the gradient, besides input and output, 0.5 KB a token and key head and 1.6 KB a token and value head.
// Threads: any; in a serving pass the runs' states move on. Asynchronous: on the calling thread's stream. The same bits
// on every run.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/layers/gated_delta.h"

namespace lathe::model::cuda {

// bf16 on a GPU, keys and values of 128, four taps held in bf16.
bool can_run_delta_layer(const DeltaConfig& config, const DeltaParameters& p, const at::TensorOptions& options);

// qkvz [rows, channels + values]; beta, g [rows, value heads] fp32 -> [rows, values].
at::Tensor between_projections(const Pass& pass, const DeltaParameters& p, const at::Tensor& qkvz,
                               const at::Tensor& beta, const at::Tensor& g);

}  // namespace lathe::model::cuda
