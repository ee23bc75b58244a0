#include "model/cuda_delta_layer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels/cuda_delta_convolution.h"
#include "kernels/cuda_gated_norm.h"
#include "model/cuda_delta_rule.h"
#include "model/saved_pointer.h"

namespace lathe::model::cuda {
namespace {

namespace k = kernels::cuda;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Of queries' and keys' length, on the sum of squares.
constexpr double kUnitEps = 1e-6;

struct Rows {
  int64_t begin, count;
  at::Tensor of(const at::Tensor& t) const { return t.narrow(0, begin, count); }
  DeltaInputs of(const DeltaInputs& t) const { return {of(t.q), of(t.k), of(t.v), of(t.g), of(t.beta)}; }
};

// What the kernels need to know about a layer.
struct Layer {
  DeltaConfig config;
  double eps;
  const weights::Parameter *conv, *norm;

  k::DeltaConvolution convolution(const at::Tensor& x, const at::Tensor& before) const {
    return {.tokens = x.size(0),
            .key_heads = config.key_heads,
            .value_heads = config.value_heads,
            .x = x.const_data_ptr(),
            .x_stride = x.stride(0),
            .before = before.const_data_ptr(),
            .taps = conv->data.const_data_ptr(),
            .eps = static_cast<float>(kUnitEps)};
  }
  k::GatedNorm gated_norm(const at::Tensor& o, const at::Tensor& qkvz) const {
    const at::Tensor z = qkvz.narrow(1, config.channels(), config.values());
    return {.tokens = o.size(0),
            .heads = config.value_heads,
            .x = o.const_data_ptr(),
            .z = z.const_data_ptr(),
            .z_stride = z.stride(0),
            .w = norm->data.const_data_ptr(),
            .wide_w = norm->data.scalar_type() == at::kFloat,
            .eps = static_cast<float>(eps)};
  }
};

template <class Launch>
void queue(const at::Tensor& x, Launch&& launch) {
  const c10::cuda::CUDAGuard guard(x.device());
  launch(c10::cuda::getCurrentCUDAStream(x.device().index()).stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// A run's share of the forward pass that its gradient needs.
struct Kept {
  at::Tensor before, start;
  DeltaChunks chunks;

  static constexpr size_t kTensors = 7;
  void append_to(variable_list& list) const {
    for (const at::Tensor& t :
         {before, start, chunks.inverse, chunks.scores, chunks.decays, chunks.states, chunks.deltas})
      list.push_back(t);
  }
  explicit Kept(const variable_list& list, size_t at)
      : before(list[at]),
        start(list[at + 1]),
        chunks{list[at + 2], list[at + 3], list[at + 4], list[at + 5], list[at + 6]} {}
  Kept() = default;
};

struct Forward {
  DeltaInputs in;  // all rows
  at::Tensor o, y;
  std::vector<Kept> kept;
};

at::Tensor next_history(const at::Tensor& before, const at::Tensor& x) {
  const int64_t n = x.size(0), kept = before.size(0);
  return n >= kept ? x.narrow(0, n - kept, kept).contiguous() : at::cat({before.narrow(0, n, kept - n), x}, 0);
}

// One run, from the convolution to the delta rule; a serving pass moves its state on.
Kept forward_run(const Layer& layer, const Pass& pass, const SequenceRows& run, const at::Tensor& qkvz,
                 const Forward& f, bool keep) {
  const DeltaConfig& c = layer.config;
  const Rows rows{run.begin, run.count};
  const DeltaState& state = run.state->delta(pass.layer);
  Kept kept;
  kept.before =
      state.history.defined() ? state.history.contiguous() : at::zeros({c.kernel - 1, c.channels()}, qkvz.options());
  kept.start = state.recurrent;
  const DeltaInputs in = rows.of(f.in);
  const at::Tensor x = rows.of(qkvz).narrow(1, 0, c.channels()), o = rows.of(f.o);
  queue(x, [&](CUstream_st* stream) {
    k::delta_convolution(layer.convolution(x, kept.before), in.q.mutable_data_ptr(), in.k.mutable_data_ptr(),
                         in.v.mutable_data_ptr(), stream);
  });
  if (pass.sink) {
    kept.chunks = run_delta_rule(in, kept.start, keep, o, at::Tensor());
    return kept;
  }
  const at::Tensor last = at::empty({c.value_heads, c.key_dim, c.value_dim}, in.g.options());
  if (run.count <= kDeltaSteps) {
    run_delta_steps(in, kept.start, o, last);
  } else {
    run_delta_rule(in, kept.start, /*keep=*/false, o, last);
  }
  run.state->set_recurrent(pass.layer, last);
  run.state->set_history(pass.layer, next_history(kept.before, x));
  return kept;
}

Forward forward(const Layer& layer, const Pass& pass, const at::Tensor& qkvz, const at::Tensor& beta,
                const at::Tensor& g, bool keep) {
  const DeltaConfig& c = layer.config;
  const int64_t rows = qkvz.size(0);
  const auto heads = [&](int64_t count) { return at::empty({rows, count, c.key_dim}, qkvz.options()); };
  Forward f{.in = {heads(c.key_heads), heads(c.key_heads), heads(c.value_heads), g.contiguous(), beta.contiguous()},
            .o = heads(c.value_heads),
            .y = at::empty({rows, c.values()}, qkvz.options())};
  for (const SequenceRows& run : pass.runs) f.kept.push_back(forward_run(layer, pass, run, qkvz, f, keep));
  queue(qkvz, [&](CUstream_st* stream) { k::gated_norm(layer.gated_norm(f.o, qkvz), f.y.mutable_data_ptr(), stream); });
  return f;
}

// Back through a run's rule and convolution: into its rows of d, and of d_qkvz but for z. Returns the taps' part.
at::Tensor backward_run(const Layer& layer, const Rows& rows, const Kept& kept, const DeltaInputs& in,
                        const at::Tensor& qkvz, const at::Tensor& d_o, const DeltaInputs& d, const at::Tensor& d_qkvz) {
  const DeltaConfig& c = layer.config;
  const DeltaInputs own = rows.of(d);
  run_delta_rule_gradient(rows.of(in), kept.start, kept.chunks, rows.of(d_o), at::Tensor(), own, at::Tensor());
  const at::Tensor x = rows.of(qkvz).narrow(1, 0, c.channels()), dx = rows.of(d_qkvz);
  const k::DeltaConvolution convolution = layer.convolution(x, kept.before);
  const at::Tensor d_taps = at::empty({convolution.strips(), c.channels() * c.kernel}, in.g.options());
  queue(x, [&](CUstream_st* stream) {
    k::delta_convolution_gradient(convolution, own.q.const_data_ptr(), own.k.const_data_ptr(), own.v.const_data_ptr(),
                                  dx.mutable_data_ptr(), dx.stride(0), d_taps.mutable_data_ptr<float>(), stream);
  });
  return d_taps.sum(0);
}

struct BetweenProjections : torch::autograd::Function<BetweenProjections> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& qkvz, const at::Tensor& beta,
                            const at::Tensor& g, const Layer& layer, const Pass* pass) {
    const Forward f = cuda::forward(layer, *pass, qkvz, beta, g, /*keep=*/true);
    variable_list saved{qkvz, f.in.q, f.in.k, f.in.v, f.in.g, f.in.beta, f.o};
    std::vector<int64_t> rows;
    for (size_t i = 0; i < f.kept.size(); ++i) {
      f.kept[i].append_to(saved);
      rows.push_back(pass->runs[i].begin), rows.push_back(pass->runs[i].count);
    }
    context->save_for_backward(saved);
    const DeltaConfig& c = layer.config;
    context->saved_data["rows"] = rows;
    context->saved_data["config"] = std::vector<int64_t>{c.key_heads, c.value_heads, c.key_dim, c.value_dim, c.kernel};
    context->saved_data["eps"] = layer.eps;
    context->saved_data["conv"] = as_int(layer.conv);
    context->saved_data["norm"] = as_int(layer.norm);
    context->saved_data["sink"] = as_int(pass->sink);
    return f.y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto numbers = context->saved_data.at("config").toIntVector();
    const Layer layer{.config = {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]},
                      .eps = context->saved_data.at("eps").toDouble(),
                      .conv = as_pointer<const weights::Parameter>(context, "conv"),
                      .norm = as_pointer<const weights::Parameter>(context, "norm")};
    auto* sink = as_pointer<weights::GradientSink>(context, "sink");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &qkvz = saved[0], &o = saved[6], dy = gradients[0].contiguous();
    const DeltaInputs in{saved[1], saved[2], saved[3], saved[4], saved[5]};
    const auto like = [](const at::Tensor& t) { return at::empty(t.sizes(), t.options()); };
    const at::Tensor d_qkvz = like(qkvz), d_o = like(o);
    const at::Tensor d_norm = at::empty({k::kGatedNormPartials, layer.config.value_dim}, in.g.options());
    const at::Tensor dz = d_qkvz.narrow(1, layer.config.channels(), layer.config.values());
    queue(qkvz, [&](CUstream_st* stream) {
      k::gated_norm_gradient(layer.gated_norm(o, qkvz), dy.const_data_ptr(), d_o.mutable_data_ptr(),
                             dz.mutable_data_ptr(), dz.stride(0), d_norm.mutable_data_ptr<float>(), stream);
    });
    sink->vector(*layer.norm, d_norm.sum(0));
    const DeltaInputs d{like(in.q), like(in.k), like(in.v), like(in.g), like(in.beta)};
    const auto rows = context->saved_data.at("rows").toIntVector();
    at::Tensor d_taps;
    for (size_t i = 0; i < rows.size() / 2; ++i) {
      const at::Tensor own = backward_run(layer, {rows[2 * i], rows[2 * i + 1]}, Kept(saved, 7 + i * Kept::kTensors),
                                          in, qkvz, d_o, d, d_qkvz);
      d_taps = d_taps.defined() ? d_taps + own : own;
    }
    sink->vector(*layer.conv, d_taps);
    return {d_qkvz, d.beta, d.g, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

bool can_run_delta_layer(const DeltaConfig& config, const DeltaParameters& p, const at::TensorOptions& options) {
  return can_run_delta_rule(options, config.key_dim, config.value_dim) && config.kernel == k::kDeltaTaps &&
         p.conv->data.scalar_type() == at::kBFloat16;
}

at::Tensor between_projections(const Pass& pass, const DeltaParameters& p, const at::Tensor& qkvz,
                               const at::Tensor& beta, const at::Tensor& g) {
  const Layer layer{.config = pass.config.delta, .eps = pass.config.rms_norm_eps, .conv = p.conv, .norm = p.norm};
  const at::Tensor rows = qkvz.contiguous();
  if (pass.sink && at::GradMode::is_enabled()) return BetweenProjections::apply(rows, beta, g, layer, &pass);
  return forward(layer, pass, rows, beta, g, /*keep=*/false).y;
}

}  // namespace lathe::model::cuda
