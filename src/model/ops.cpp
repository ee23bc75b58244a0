#include "model/ops.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "gpu/device.h"
#include "model/cpu_attention.h"
#include "model/cpu_ops.h"
#include "model/cuda_attention.h"
#include "model/cuda_ops.h"
#include "model/saved_pointer.h"

namespace lathe::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using weights::GradientSink;
using weights::Parameter;

// A bias may be held in another type than the matrices (WeightStore::load); products are computed in theirs.
std::optional<at::Tensor> bias_for(const Parameter* bias, const at::Tensor& x) {
  return bias ? std::optional<at::Tensor>(bias->data.to(x.scalar_type())) : std::nullopt;
}

// y = x Wᵀ + b. Backward: dx = dy W is passed on; (x, dy) and Σ dy go to the sink.
struct FactoredLinear : torch::autograd::Function<FactoredLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const Parameter* weight,
                            const Parameter* bias, GradientSink* sink) {
    context->save_for_backward({x});
    context->saved_data["weight"] = as_int(weight);
    context->saved_data["bias"] = as_int(bias);
    context->saved_data["sink"] = as_int(sink);
    return at::linear(x, weight->data, bias_for(bias, x));
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto* weight = as_pointer<const Parameter>(context, "weight");
    const auto* bias = as_pointer<const Parameter>(context, "bias");
    auto* sink = as_pointer<GradientSink>(context, "sink");
    const at::Tensor dy = gradients[0].contiguous();
    sink->linear(*weight, context->get_saved_variables()[0], dy);
    if (bias) sink->vector(*bias, dy.sum(0, /*keepdim=*/false, wide_type(dy)));
    return {at::mm(dy, weight->data), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// n = x r with r = 1/sqrt(mean(x²) + eps), fp32.
struct Normed {
  at::Tensor n, r;
  Normed(const at::Tensor& x, double eps) {
    const at::Tensor wide = x.to(wide_type(x));
    r = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps);
    n = wide * r;
  }
  at::Tensor weighted(const at::Tensor& w, NormStyle style, at::ScalarType compute) const {
    if (style == NormStyle::kPlain) return n.to(compute) * w;
    return (n * (1 + w.to(n.scalar_type()))).to(compute);
  }
};

// Backward, all in fp32 with ŵ = w or 1 + w: dn = dy ŵ, dx = r (dn - n mean(dn n)), dw = Σ dy n.
struct SinkRmsNorm : torch::autograd::Function<SinkRmsNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const Parameter* weight, double eps,
                            bool zero_centred, GradientSink* sink) {
    const Normed normed(x, eps);
    context->save_for_backward({x, normed.r});
    context->saved_data["weight"] = as_int(weight);
    context->saved_data["zero_centred"] = zero_centred;
    context->saved_data["sink"] = as_int(sink);
    return normed.weighted(weight->data, zero_centred ? NormStyle::kZeroCentred : NormStyle::kPlain, x.scalar_type());
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto* weight = as_pointer<const Parameter>(context, "weight");
    auto* sink = as_pointer<GradientSink>(context, "sink");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &r = saved[1];
    const at::Tensor n = x.to(r.scalar_type()) * r;
    const at::Tensor dy = gradients[0].to(r.scalar_type());
    sink->vector(*weight, (dy * n).reshape({-1, n.size(-1)}).sum(0));
    const double offset = context->saved_data.at("zero_centred").toBool() ? 1 : 0;
    const at::Tensor dn = dy * (weight->data.to(r.scalar_type()) + offset);
    const at::Tensor dx = r * (dn - n * (dn * n).mean(-1, /*keepdim=*/true));
    return {dx.to(x.scalar_type()), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// The fused kernels of x's device.
at::Tensor fused_rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back) {
  if constexpr (gpu::kBuilt) {
    if (x.is_cuda()) return cuda::rotate(x, cos, sin, back);
  }
  return cpu::rotate(x, cos, sin, back);
}
at::Tensor fused_silu_mul(const at::Tensor& gate_up) {
  if constexpr (gpu::kBuilt) {
    if (gate_up.is_cuda()) return cuda::silu_mul(gate_up);
  }
  return cpu::silu_mul(gate_up);
}
at::Tensor fused_silu_mul_backward(const at::Tensor& dy, const at::Tensor& gate_up) {
  if constexpr (gpu::kBuilt) {
    if (gate_up.is_cuda()) return cuda::silu_mul_backward(dy, gate_up);
  }
  return cpu::silu_mul_backward(dy, gate_up);
}

// The gradient is turned back by the same angles.
struct FusedRotate : torch::autograd::Function<FusedRotate> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    context->save_for_backward({cos, sin});
    return fused_rotate(x, cos, sin, /*back=*/false);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list tables = context->get_saved_variables();
    return {fused_rotate(gradients[0].contiguous(), tables[0], tables[1], /*back=*/true), at::Tensor(), at::Tensor()};
  }
};

struct FusedSiluMul : torch::autograd::Function<FusedSiluMul> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate_up) {
    context->save_for_backward({gate_up});
    return fused_silu_mul(gate_up);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {fused_silu_mul_backward(gradients[0].contiguous(), context->get_saved_variables()[0])};
  }
};

bool differentiates(const at::Tensor& x) {
  return at::GradMode::is_enabled() && x.requires_grad();
}

bool can_rotate_fused(const at::Tensor& x, const at::Tensor& cos) {
  if constexpr (gpu::kBuilt) {
    if (cuda::can_run(x)) return true;
  }
  return cpu::can_run(x) && 2 * cos.size(1) == x.size(-1);
}

bool can_silu_mul_fused(const at::Tensor& gate_up) {
  if constexpr (gpu::kBuilt) {
    if (cuda::can_run(gate_up)) return true;
  }
  return cpu::can_run(gate_up);
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const Parameter& weight, const Parameter* bias, GradientSink* sink) {
  if (sink && at::GradMode::is_enabled()) return FactoredLinear::apply(x, &weight, bias, sink);
  if (cpu::can_run(x) && cpu::few_rows(x) && !at::GradMode::is_enabled())
    return cpu::linear_few_rows(x, weight.data, bias_for(bias, x).value_or(at::Tensor()));
  return at::linear(x, weight.data, bias_for(bias, x));
}

at::Tensor rms_norm(const at::Tensor& x, const Parameter& weight, double eps, NormStyle style, GradientSink* sink) {
  if constexpr (gpu::kBuilt) {
    if (cuda::can_run(x)) return cuda::rms_norm(x, weight, eps, style, sink);
  }
  if (style == NormStyle::kPlain && cpu::can_run(x) && weight.data.scalar_type() == x.scalar_type())
    return cpu::rms_norm(x, weight, eps, sink);
  if (sink && at::GradMode::is_enabled())
    return SinkRmsNorm::apply(x, &weight, eps, style == NormStyle::kZeroCentred, sink);
  return Normed(x, eps).weighted(weight.data, style, x.scalar_type());
}

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  if (can_rotate_fused(x, cos))
    return differentiates(x) ? FusedRotate::apply(x, cos, sin) : fused_rotate(x, cos, sin, /*back=*/false);
  const int64_t half = cos.size(1), rotating = 2 * half;
  const at::Tensor first = x.narrow(-1, 0, half), second = x.narrow(-1, half, half);
  const at::Tensor c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  std::vector<at::Tensor> pieces{first * c - second * s, second * c + first * s};
  if (rotating < x.size(-1)) pieces.push_back(x.narrow(-1, rotating, x.size(-1) - rotating));
  return at::cat(pieces, -1);
}

at::Tensor silu_mul(const at::Tensor& gate_up) {
  if (can_silu_mul_fused(gate_up)) {
    const at::Tensor packed = gate_up.contiguous();
    return differentiates(packed) ? FusedSiluMul::apply(packed) : fused_silu_mul(packed);
  }
  const int64_t inner = gate_up.size(-1) / 2;
  return at::silu(gate_up.narrow(-1, 0, inner)) * gate_up.narrow(-1, inner, inner);
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  if constexpr (gpu::kBuilt) {
    if (cuda::can_run(q)) return cuda::attention(q, k, v, scale, cuda::choose_attention(q, k.size(1)));
  }
  if (cpu::can_attend(q)) return cpu::attention(q, k, v, scale);
  const int64_t n = q.size(0), m = k.size(1);
  std::optional<at::Tensor> mask;
  if (n > 1 && n != m) mask = at::ones({n, m}, q.options().dtype(at::kBool)).tril_(m - n);
  const at::Tensor out = at::scaled_dot_product_attention(
      q.transpose(0, 1).unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), mask, /*dropout_p=*/0.0,
      /*is_causal=*/n > 1 && n == m, scale, /*enable_gqa=*/q.size(1) != k.size(0));
  return out.squeeze(0).transpose(0, 1).reshape({n, -1});
}

bool can_soft_max_in_place(const at::TensorOptions& options) {
  if (options.device().is_cpu()) return options.dtype() == at::kBFloat16;
  return gpu::kBuilt && options.dtype() != at::kDouble;
}

SoftMaxStatistics soft_max_statistics(const at::Tensor& logits, const at::Tensor& targets) {
  if constexpr (gpu::kBuilt) {
    if (logits.is_cuda()) return cuda::soft_max_statistics(logits, targets);
  }
  return cpu::soft_max_statistics(logits, targets);
}

void soft_max_gradient_(at::Tensor& logits, const at::Tensor& targets, const at::Tensor& slopes,
                        const at::Tensor& log_sum) {
  if constexpr (gpu::kBuilt) {
    if (logits.is_cuda()) return cuda::soft_max_gradient_(logits, targets, slopes, log_sum);
  }
  cpu::soft_max_gradient_(logits, targets, slopes, log_sum);
}

}  // namespace lathe::model
