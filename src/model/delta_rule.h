// The gated delta rule: the recurrence of a Gated DeltaNet layer (Yang et al., arXiv 2412.06464), and its gradient.
//
// Per value head, with a state S [K, V] that starts at S_0:
//
//   S̄ = e^{g_t} S_{t-1}     δ_t = β_t (v_t - S̄ᵀ k_t)     S_t = S̄ + k_t δ_tᵀ     o_t = S_tᵀ q_t
//
// Value head h reads query and key head h / (value heads / key heads). g_t <= 0 is the logarithm of the decay.
//
// Why: token by token is slow beyond a few tokens. In chunks of 64 only the state between chunks is sequential; inside a
// chunk everything is a matrix product (the WY form: delta_rule.cpp says how). The gradient is written out, since
// autograd through the chunk form would keep a dozen [T, 64] matrices per head.
// Shapes: n tokens of one sequence; q, k [n, key heads, K]; v [n, value heads, V]; g, beta [n, value heads]; states
// [value heads, K, V].
// Dtype: all fp32, or all fp64 for oracles.
// Threads: pure functions.
#pragma once

#include <ATen/core/Tensor.h>

namespace lathe::model {

struct DeltaInputs {
  at::Tensor q, k;  // unit length; q scaled by 1/sqrt(K)
  at::Tensor v, g, beta;
};

struct DeltaOutput {
  at::Tensor o;      // [n, value heads, V]
  at::Tensor state;  // S_n
};

// `start` is S_0, or undefined for zeros.
DeltaOutput delta_rule(const DeltaInputs& in, const at::Tensor& start);

// The definition above, token by token: for decoding, and the oracle.
DeltaOutput delta_rule_by_token(const DeltaInputs& in, const at::Tensor& start);

// Gradient with respect to every input for `d_o`, the gradient of o, and `d_state`, that of the last state (undefined:
// zeros).
struct DeltaGradient {
  DeltaInputs in;
  at::Tensor start;
};
DeltaGradient delta_rule_gradient(const DeltaInputs& in, const at::Tensor& start, const at::Tensor& d_o,
                                  const at::Tensor& d_state);

// o of delta_rule() as a node of autograd; `start` is a constant to it.
at::Tensor delta_rule_with_gradient(const DeltaInputs& in, const at::Tensor& start);

}  // namespace lathe::model
