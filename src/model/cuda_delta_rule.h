// The gated delta rule of model/delta_rule.h on a GPU's tensor cores, over the kernels of kernels/cuda_delta_rule.h;
// the ATen form in delta_rule.cpp is the oracle (gpu_delta_rule_test.cpp).
//
// Only in a build with CUDA.
// Shapes: as in delta_rule.h, keys and values of 128. The last dimension of q, k and v has no gaps, nor have heads;
// tokens may lie apart. Results are without gaps.
// Dtype: q, k, v and o bf16; g, beta and states fp32.
// Threads: any. Asynchronous: on the calling thread's stream. The same bits on every run.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/delta_rule.h"

namespace lathe::model::cuda {

// bf16 on a GPU, keys and values of 128.
bool can_run_delta_rule(const at::TensorOptions& options, int64_t key_size, int64_t value_size);

// What the forward pass computes on its way: 272 bytes a token and value head, and, kept for the gradient, 1,040.
struct DeltaChunks {
  at::Tensor inverse, scores, decays, states, deltas;
};

// Into o, and into `state` if it is defined. Undefined `start`: zeros.
DeltaChunks run_delta_rule(const DeltaInputs& in, const at::Tensor& start, bool keep, const at::Tensor& o,
                           const at::Tensor& state);
// Token by token in fp32, at most kDeltaSteps of them, into o and `state`: for decoding.
constexpr int64_t kDeltaSteps = 4;
void run_delta_steps(const DeltaInputs& in, const at::Tensor& start, const at::Tensor& o, const at::Tensor& state);

// From what run_delta_rule() kept, into `d`, and into d_start if it is defined. Undefined d_state: zeros.
void run_delta_rule_gradient(const DeltaInputs& in, const at::Tensor& start, const DeltaChunks& chunks,
                             const at::Tensor& d_o, const at::Tensor& d_state, const DeltaInputs& d,
                             const at::Tensor& d_start);

// As in delta_rule.h.
DeltaOutput delta_rule(const DeltaInputs& in, const at::Tensor& start);
DeltaGradient delta_rule_gradient(const DeltaInputs& in, const at::Tensor& start, const at::Tensor& d_o,
                                  const at::Tensor& d_state);

}  // namespace lathe::model::cuda
