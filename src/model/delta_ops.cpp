#include "model/delta_ops.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "model/ops.h"
#include "model/saved_pointer.h"

namespace lathe::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using weights::GradientSink;
using weights::Parameter;

at::Tensor convolve(const at::Tensor& padded, const at::Tensor& taps, int64_t n) {
  at::Tensor y = padded.narrow(0, 0, n) * taps.select(1, 0);
  for (int64_t j = 1; j < taps.size(1); ++j) y.addcmul_(padded.narrow(0, j, n), taps.select(1, j));
  return y;
}

// Taps [channels, kernel].
at::Tensor taps_of(const Parameter& weight, int64_t kernel) {
  return weight.data.to(wide_type(weight.data)).view({-1, kernel});
}

// Backward: dx_i = Σ_j w_j dy_{i + kernel - 1 - j}, dw_j = Σ_t dy_t x_{t - kernel + 1 + j}.
struct SinkConv : torch::autograd::Function<SinkConv> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& before,
                            const Parameter* weight, int64_t kernel, GradientSink* sink) {
    context->save_for_backward({x, before});
    context->saved_data["weight"] = as_int(weight);
    context->saved_data["kernel"] = kernel;
    context->saved_data["sink"] = as_int(sink);
    return causal_conv(x, before, *weight, kernel, nullptr);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto* weight = as_pointer<const Parameter>(context, "weight");
    auto* sink = as_pointer<GradientSink>(context, "sink");
    const int64_t kernel = context->saved_data.at("kernel").toInt();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], dy = gradients[0].to(wide_type(x));
    const int64_t n = x.size(0);
    const at::Tensor padded = at::cat({saved[1], x}, 0).to(wide_type(x));
    std::vector<at::Tensor> d_taps;
    for (int64_t j = 0; j < kernel; ++j) d_taps.push_back((dy * padded.narrow(0, j, n)).sum(0));
    sink->vector(*weight, at::stack(d_taps, 1).flatten());
    // The same convolution, backwards in time.
    const at::Tensor ahead = at::cat({dy, at::zeros({kernel - 1, dy.size(1)}, dy.options())}, 0);
    const at::Tensor dx = convolve(ahead, taps_of(*weight, kernel).flip(1), n);
    return {dx.to(x.scalar_type()), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct DecayParts {
  at::Tensor shifted, rate, g;  // a + dt_bias, -exp(A_log), g
  DecayParts(const at::Tensor& a, const Parameter& a_log, const Parameter& dt_bias)
      : shifted(a.to(wide_type(a)) + dt_bias.data.to(wide_type(a))), rate(a_log.data.to(wide_type(a)).exp().neg()) {
    g = rate * at::softplus(shifted);
  }
};

// Backward: da = dg rate sigmoid(a + dt_bias), d dt_bias = Σ da, dA_log = Σ dg g.
struct SinkDecay : torch::autograd::Function<SinkDecay> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& a, const Parameter* a_log,
                            const Parameter* dt_bias, GradientSink* sink) {
    context->save_for_backward({a});
    context->saved_data["a_log"] = as_int(a_log);
    context->saved_data["dt_bias"] = as_int(dt_bias);
    context->saved_data["sink"] = as_int(sink);
    return DecayParts(a, *a_log, *dt_bias).g;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto* a_log = as_pointer<const Parameter>(context, "a_log");
    const auto* dt_bias = as_pointer<const Parameter>(context, "dt_bias");
    auto* sink = as_pointer<GradientSink>(context, "sink");
    const at::Tensor a = context->get_saved_variables()[0], dg = gradients[0];
    const DecayParts parts(a, *a_log, *dt_bias);
    const at::Tensor da = dg * parts.rate * at::sigmoid(parts.shifted);
    sink->vector(*dt_bias, da.sum(0));
    sink->vector(*a_log, (dg * parts.g).sum(0));
    return {da.to(a.scalar_type()), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor causal_conv(const at::Tensor& x, const at::Tensor& before, const Parameter& weight, int64_t kernel,
                       GradientSink* sink) {
  if (sink && at::GradMode::is_enabled()) return SinkConv::apply(x, before, &weight, kernel, sink);
  const at::Tensor padded = at::cat({before, x}, 0).to(wide_type(x));
  return convolve(padded, taps_of(weight, kernel), x.size(0)).to(x.scalar_type());
}

at::Tensor decay_gate(const at::Tensor& a, const Parameter& a_log, const Parameter& dt_bias, GradientSink* sink) {
  if (sink && at::GradMode::is_enabled()) return SinkDecay::apply(a, &a_log, &dt_bias, sink);
  return DecayParts(a, a_log, dt_bias).g;
}

}  // namespace lathe::model
