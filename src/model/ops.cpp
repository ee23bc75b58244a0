#include "model/ops.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/cpu_ops.h"

namespace lathe::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using weights::GradientSink;
using weights::Parameter;

// Pointers travel through autograd's saved data as integers: parameters and sink outlive the backward pass by contract.
template <class T>
int64_t as_int(T* pointer) {
  return reinterpret_cast<int64_t>(pointer);
}
template <class T>
T* as_pointer(const AutogradContext* context, const char* name) {
  return reinterpret_cast<T*>(context->saved_data.at(name).toInt());
}

// y = x Wᵀ + b. Backward: dx = dy W goes on; (x, dy) and Σ dy go to the sink.
struct FactoredLinear : torch::autograd::Function<FactoredLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const Parameter* weight,
                            const Parameter* bias, GradientSink* sink) {
    context->save_for_backward({x});
    context->saved_data["weight"] = as_int(weight);
    context->saved_data["bias"] = as_int(bias);
    context->saved_data["sink"] = as_int(sink);
    return at::linear(x, weight->data, bias ? std::optional<at::Tensor>(bias->data) : std::nullopt);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto* weight = as_pointer<const Parameter>(context, "weight");
    const auto* bias = as_pointer<const Parameter>(context, "bias");
    auto* sink = as_pointer<GradientSink>(context, "sink");
    const at::Tensor dy = gradients[0].contiguous();
    sink->linear(*weight, context->get_saved_variables()[0], dy);
    if (bias) sink->vector(*bias, dy.sum(0, /*keepdim=*/false, at::kFloat));
    return {at::mm(dy, weight->data), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// n = x r, y = w c(n), r = 1/sqrt(mean(x²) + eps). Backward, all in fp32: dn = dy w, dx = r (dn - n mean(dn n)), dw = Σ
// dy n.
struct SinkRmsNorm : torch::autograd::Function<SinkRmsNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const Parameter* weight, double eps,
                            GradientSink* sink) {
    const at::Tensor wide = x.to(at::kFloat);
    const at::Tensor r = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps);
    context->save_for_backward({x, r});
    context->saved_data["weight"] = as_int(weight);
    context->saved_data["sink"] = as_int(sink);
    return (wide * r).to(x.scalar_type()) * weight->data;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto* weight = as_pointer<const Parameter>(context, "weight");
    auto* sink = as_pointer<GradientSink>(context, "sink");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& r = saved[1];
    const at::Tensor n = saved[0].to(at::kFloat) * r;
    const at::Tensor dy = gradients[0].to(at::kFloat);
    sink->vector(*weight, (dy * n).reshape({-1, n.size(-1)}).sum(0));
    const at::Tensor dn = dy * weight->data.to(at::kFloat);
    const at::Tensor dx = r * (dn - n * (dn * n).mean(-1, /*keepdim=*/true));
    return {dx.to(gradients[0].scalar_type()), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor linear(const at::Tensor& x, const Parameter& weight, const Parameter* bias, GradientSink* sink) {
  if (sink && at::GradMode::is_enabled()) return FactoredLinear::apply(x, &weight, bias, sink);
  if (cpu::can_serve(x) && cpu::few_rows(x))
    return cpu::linear_few_rows(x, weight.data, bias ? bias->data : at::Tensor());
  return at::linear(x, weight.data, bias ? std::optional<at::Tensor>(bias->data) : std::nullopt);
}

at::Tensor rms_norm(const at::Tensor& x, const Parameter& weight, double eps, GradientSink* sink) {
  if (sink && at::GradMode::is_enabled()) return SinkRmsNorm::apply(x, &weight, eps, sink);
  if (cpu::can_serve(x)) return cpu::rms_norm(x, weight.data, eps);
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor r = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps);
  return (wide * r).to(x.scalar_type()) * weight.data;
}

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  if (cpu::can_serve(x)) return cpu::rotate(x, cos, sin);
  const int64_t half = x.size(-1) / 2;
  const at::Tensor first = x.narrow(-1, 0, half), second = x.narrow(-1, half, half);
  const at::Tensor c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  return at::cat({first * c - second * s, second * c + first * s}, -1);
}

at::Tensor silu_mul(const at::Tensor& gate_up) {
  if (cpu::can_serve(gate_up)) return cpu::silu_mul(gate_up);
  const int64_t inner = gate_up.size(-1) / 2;
  return at::silu(gate_up.narrow(-1, 0, inner)) * gate_up.narrow(-1, inner, inner);
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const int64_t n = q.size(0), m = k.size(1);
  std::optional<at::Tensor> mask;
  if (n > 1) mask = at::ones({n, m}, q.options().dtype(at::kBool)).tril_(m - n);
  const at::Tensor out = at::scaled_dot_product_attention(
      q.transpose(0, 1).unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), mask, /*dropout_p=*/0.0,
      /*is_causal=*/false, /*scale=*/std::nullopt, /*enable_gqa=*/q.size(1) != k.size(0));
  return out.squeeze(0).transpose(0, 1).reshape({n, -1});
}

}  // namespace lathe::model
