// The mixer of a Gated DeltaNet layer, as transformers' modeling_qwen3_5.py computes it:
//
//   queries, keys, values, z = in_proj_qkvz h                 b, a = in_proj_ba h
//   queries, keys, values <- silu(causal convolution over time)
//   q, k <- unit length, q scaled by 1/sqrt(K)                β = sigmoid(b), g = -exp(A_log) softplus(a + dt_bias)
//   o = gated delta rule                                      delta_rule.h, in fp32
//   out_proj (norm(o) * silu(z))
//
// On a GPU everything between the projections is a few kernels of its own (cuda_delta_layer.h) where they can run it.
#include "model/layers/gated_delta.h"

#include <ATen/ATen.h>

#include <atomic>
#include <cmath>

#include "base/log.h"
#include "model/delta_ops.h"
#include "model/delta_rule.h"
#include "model/layers/specs.h"
#include "model/ops.h"
#ifdef LATHE_CUDA
#include "model/cuda_delta_layer.h"
#endif

namespace lathe::model {
namespace {

// Below this many rows the recurrence itself is faster than its chunked form.
constexpr int64_t kFewTokens = 4;

constexpr double kUnitEps = 1e-6;  // of the queries' and keys' length, on the sum of squares

// One run's rows through the convolution, and what the next rows need of them: the last kernel - 1 inputs.
struct Convolved {
  at::Tensor y;        // [n, channels]
  at::Tensor history;  // [kernel - 1, channels]
};

Convolved convolve(const at::Tensor& x, const at::Tensor& history, const DeltaParameters& p, const DeltaConfig& c,
                   weights::GradientSink* sink) {
  const at::Tensor before = history.defined() ? history : at::zeros({c.kernel - 1, x.size(1)}, x.options());
  const at::Tensor y = at::silu(causal_conv(x, before, *p.conv, c.kernel, sink));
  if (sink) return {y, {}};
  const int64_t n = x.size(0), kept = c.kernel - 1;
  return {y, n >= kept ? x.narrow(0, n - kept, kept).clone() : at::cat({before.narrow(0, n, kept - n), x}, 0)};
}

at::Tensor unit(const at::Tensor& x) {
  const at::Tensor wide = x.to(wide_type(x));
  return wide * at::rsqrt(wide.square().sum(-1, /*keepdim=*/true) + kUnitEps);
}

at::Tensor run_delta_rule(const Pass& pass, const SequenceRows& run, const DeltaInputs& in) {
  const at::Tensor start = run.state->delta(pass.layer).recurrent;
  if (pass.sink) return delta_rule_with_gradient(in, start);
  DeltaOutput out = run.count <= kFewTokens ? delta_rule_by_token(in, start) : delta_rule(in, start);
  run.state->set_recurrent(pass.layer, std::move(out.state));
  return out.o;
}

// What lies between the projections, operation by operation: [rows, values] for the last.
at::Tensor between_projections(const Pass& pass, const DeltaParameters& p, const at::Tensor& qkvz,
                               const at::Tensor& beta, const at::Tensor& g) {
  const DeltaConfig& c = pass.config.delta;
  const int64_t rows = qkvz.size(0);
  const at::ScalarType wide = wide_type(qkvz);
  std::vector<at::Tensor> outputs;
  for (const SequenceRows& run : pass.runs) {
    const auto own = [&](const at::Tensor& t) { return t.narrow(0, run.begin, run.count); };
    const Convolved conv =
        convolve(own(qkvz).narrow(1, 0, c.channels()), run.state->delta(pass.layer).history, p, c, pass.sink);
    if (!pass.sink) run.state->set_history(pass.layer, conv.history);
    const auto heads = [&](int64_t first, int64_t count, int64_t size) {
      return conv.y.narrow(1, first, count * size).view({run.count, count, size});
    };
    const DeltaInputs in{.q = unit(heads(0, c.key_heads, c.key_dim)) / std::sqrt(static_cast<double>(c.key_dim)),
                         .k = unit(heads(c.keys(), c.key_heads, c.key_dim)),
                         .v = heads(2 * c.keys(), c.value_heads, c.value_dim).to(wide),
                         .g = own(g),
                         .beta = own(beta)};
    outputs.push_back(run_delta_rule(pass, run, in));
  }
  const at::Tensor o = (outputs.size() == 1 ? outputs[0] : at::cat(outputs, 0)).to(qkvz.scalar_type());
  const at::Tensor normed = rms_norm(o, *p.norm, pass.config.rms_norm_eps, NormStyle::kPlain, pass.sink);
  const at::Tensor z = qkvz.narrow(1, c.channels(), c.values()).view({rows, c.value_heads, c.value_dim});
  const at::Tensor gated = (normed * at::silu(z.to(wide))).to(qkvz.scalar_type());
  return gated.reshape({rows, c.values()});
}

}  // namespace

void add_delta_specs(const ModelConfig& c, const std::string& p, std::vector<weights::ParameterSpec>& specs) {
  const int64_t d = c.hidden_size;
  const DeltaConfig& delta = c.delta;
  specs.push_back({p + "in_proj_qkvz.weight",
                   {{p + "in_proj_qkv.weight", {delta.channels(), d}}, {p + "in_proj_z.weight", {delta.values(), d}}}});
  specs.push_back(
      {p + "in_proj_ba.weight",
       {{p + "in_proj_b.weight", {delta.value_heads, d}}, {p + "in_proj_a.weight", {delta.value_heads, d}}}});
  specs.push_back(single(p + "conv1d.weight", {delta.channels(), 1, delta.kernel}));
  specs.push_back(single(p + "A_log", {delta.value_heads}));
  specs.push_back(single(p + "dt_bias", {delta.value_heads}));
  specs.push_back(single(p + "norm.weight", {delta.value_dim}));
  specs.push_back(single(p + "out_proj.weight", {d, delta.values()}));
}

DeltaParameters find_delta(const std::string& p, const weights::WeightStore& store) {
  const auto get = [&](const char* name) { return &store.parameter(p + name); };
  return {.qkvz = get("in_proj_qkvz.weight"),
          .ba = get("in_proj_ba.weight"),
          .conv = get("conv1d.weight"),
          .a_log = get("A_log"),
          .dt_bias = get("dt_bias"),
          .norm = get("norm.weight"),
          .output = get("out_proj.weight")};
}

at::Tensor delta_mixer(const Pass& pass, const DeltaParameters& p, const at::Tensor& h) {
  const DeltaConfig& c = pass.config.delta;
  const at::Tensor qkvz = linear(h, *p.qkvz, nullptr, pass.sink), ba = linear(h, *p.ba, nullptr, pass.sink);
  const at::Tensor beta = at::sigmoid(ba.narrow(1, 0, c.value_heads)).to(wide_type(h));
  const at::Tensor g = decay_gate(ba.narrow(1, c.value_heads, c.value_heads), *p.a_log, *p.dt_bias, pass.sink);

#ifdef LATHE_CUDA
  if (cuda::can_run_delta_layer(c, p, h.options()))
    return linear(cuda::between_projections(pass, p, qkvz, beta, g), *p.output, nullptr, pass.sink);
  static std::atomic<bool> named = false;
  if (h.is_cuda() && !named.exchange(true))
    log::info(
        "gated delta layers run as separate operations: the GPU's own kernels are for bf16, heads of 128 and four "
        "taps");
#endif
  return linear(between_projections(pass, p, qkvz, beta, g), *p.output, nullptr, pass.sink);
}

int64_t delta_row(const ModelConfig& c) {
  return c.delta.channels() + 2 * c.delta.values();
}

int64_t delta_kept(const ModelConfig& c) {
  return 8 * c.delta.channels() + 6 * c.delta.values();
}

int64_t delta_state_bytes(const ModelConfig& c, int64_t element) {
  return c.delta.values() * c.delta.key_dim * 4 + c.delta.channels() * c.delta.kernel * element;
}

}  // namespace lathe::model
