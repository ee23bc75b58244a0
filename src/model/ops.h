// The operations a decoder layer is made of.
//
// Each works in two modes. Without autograd it is the serving path. With autograd on and a sink it is the teaching
// path: activations are differentiated as usual, parameters never are; their gradient goes to the sink as factors while
// autograd walks back (design: factored gradients). Formulas: docs/research and transformers' modeling_llama.py /
// modeling_qwen3.py.
//
// Shapes: N packed rows, D hidden size, H query heads, G key/value heads, K head size.
// Dtype: the compute dtype c (bf16 or fp32; fp64 for comparisons) in and out; what is fp32 inside is said below.
// Threads: any; no state.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/config.h"
#include "weights/gradient.h"

namespace lathe::model {

// The dtype of statistics, recurrences and parameters' gradients: fp32, or fp64 where a comparison computes in fp64.
inline at::ScalarType wide_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// x Wᵀ + b, x [N, in] -> [N, out]. `bias` may be null. fp32 accumulation inside the GEMM.
at::Tensor linear(const at::Tensor& x, const weights::Parameter& weight, const weights::Parameter* bias,
                  weights::GradientSink* sink);

// RMSNorm over the last dimension, statistics in fp32. The result has the wider dtype of x and weight.
at::Tensor rms_norm(const at::Tensor& x, const weights::Parameter& weight, double eps, NormStyle style,
                    weights::GradientSink* sink);

// Rotates half-split pairs (j, j + r/2) of the first r dimensions of x [N, heads, K] by the tables [N, r/2]; the others
// pass.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

// silu(gate) * up from the fused [N, 2I] -> [N, I].
at::Tensor silu_mul(const at::Tensor& gate_up);

// Causal attention of q [n, H, K] over k, v [G, m, K], m >= n: query i sees keys 0 .. m - n + i (aligned bottom-right;
// the is_causal flag of scaled_dot_product_attention is aligned top-left and would be wrong here). `scale` multiplies
// scores; soft-max in fp32. Returns [n, H * K].
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale);

// Of logits [n, V] and targets [n] int64 on the same device.
struct SoftMaxStatistics {
  at::Tensor log_sum, log_p;  // [n] fp32: log Σ e^l, log p(target)
};

// Whether these two work on logits of such options: bf16, and on a GPU fp32 too.
bool can_soft_max_in_place(const at::TensorOptions& options);
SoftMaxStatistics soft_max_statistics(const at::Tensor& logits, const at::Tensor& targets);
// In place: logits become slopes (onehot(target) - p). `slopes` [n] fp32.
void soft_max_gradient_(at::Tensor& logits, const at::Tensor& targets, const at::Tensor& slopes,
                        const at::Tensor& log_sum);

}  // namespace lathe::model
