#include "model/model.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <numbers>

#include "model/ops.h"

namespace lathe::model {
namespace {

using weights::GradientSink;
using weights::Parameter;
using weights::ParameterSpec;

constexpr const char* kEmbedding = "embed_tokens.weight";
constexpr const char* kFinalNorm = "norm.weight";
constexpr const char* kHead = "lm_head.weight";

// 1 / theta^(2j / r) for the r rotating dimensions, rescaled band by band for Llama 3.1 and later.
at::Tensor inverse_frequencies(const ModelConfig& c) {
  const int64_t rotating = c.rotary_dim > 0 ? c.rotary_dim : c.head_dim;
  at::Tensor frequencies = at::empty({rotating / 2}, at::kFloat);
  float* out = frequencies.data_ptr<float>();
  for (int64_t j = 0; j < rotating / 2; ++j) {
    const auto exponent = static_cast<float>(2 * j) / static_cast<float>(rotating);
    out[j] = 1.0F / std::pow(static_cast<float>(c.rope_theta), exponent);
    if (!c.llama3_rope) continue;
    const Llama3Rope& rope = *c.llama3_rope;
    const double wavelength = 2 * std::numbers::pi / out[j];
    const double turns = rope.original_max_positions / wavelength;
    if (turns < rope.low_freq_factor) {
      out[j] = static_cast<float>(out[j] / rope.factor);
    } else if (turns <= rope.high_freq_factor) {
      const double smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
      out[j] = static_cast<float>((1 - smooth) * out[j] / rope.factor + smooth * out[j]);
    }
  }
  return frequencies;
}

}  // namespace

std::vector<ParameterSpec> Model::parameter_specs(const ModelConfig& config) {
  std::vector<ParameterSpec> specs;
  const auto table = [&](const std::string& name) {
    return ParameterSpec{name, {{name, {config.vocab_size, config.hidden_size}}}, /*vocabulary=*/true};
  };
  specs.push_back(table(config.prefix + kEmbedding));
  for (int64_t layer = 0; layer < config.layers; ++layer) add_layer_specs(config, layer, specs);
  specs.push_back({config.prefix + kFinalNorm, {{config.prefix + kFinalNorm, {config.hidden_size}}}});
  if (!config.tie_embeddings) specs.push_back(table(kHead));
  return specs;
}

Model::Model(ModelConfig config, const weights::WeightStore& store)
    : config_(std::move(config)),
      embedding_(&store.parameter(config_.prefix + kEmbedding)),
      final_norm_(&store.parameter(config_.prefix + kFinalNorm)),
      head_(config_.tie_embeddings ? embedding_ : &store.parameter(kHead)),
      inverse_frequencies_(inverse_frequencies(config_)) {
  for (int64_t layer = 0; layer < config_.layers; ++layer) layers_.push_back(find_layer(config_, layer, store));
}

at::TensorOptions Model::options() const {
  return embedding_->data.options();
}

Rotary Model::rotary(std::span<const SequenceRows> runs, int64_t rows) const {
  at::Tensor positions = at::empty({rows, 1}, at::kFloat);
  float* out = positions.data_ptr<float>();
  for (const SequenceRows& run : runs) {
    for (int64_t i = 0; i < run.count; ++i) out[run.begin + i] = static_cast<float>(run.position + i);
  }
  const at::Tensor angles = (positions * inverse_frequencies_).to(options().device());
  return {angles.cos().to(options()), angles.sin().to(options())};
}

at::Tensor Model::forward(const at::Tensor& ids, std::span<const SequenceRows> runs, const LayerTap& tap) const {
  const at::NoGradGuard no_grad;
  const Rotary tables = rotary(runs, ids.size(0));
  at::Tensor x = embed(ids);
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    if (tap) tap(layer, x);
    x = decoder_layer({config_, layer, runs, tables, /*sink=*/nullptr}, layers_[layer], x);
  }
  if (tap) tap(config_.layers, x);
  for (const SequenceRows& run : runs) run.state->advance(run.count);
  return x;
}

at::Tensor Model::final_normed(const at::Tensor& rows, GradientSink* sink) const {
  return rms_norm(rows, *final_norm_, config_.rms_norm_eps, config_.norm, sink).to(rows.scalar_type());
}

at::Tensor Model::embed(const at::Tensor& ids) const {
  const at::NoGradGuard no_grad;
  at::Tensor x = at::embedding(embedding_->data, ids);
  if (config_.embedding_multiplier != 1) x.mul_(config_.embedding_multiplier);
  return x;
}

void Model::embed_backward(const at::Tensor& ids, const at::Tensor& dx, GradientSink& sink) const {
  at::Tensor read = ids, rows = dx;
  if (config_.pad_token) {
    const at::Tensor kept = ids.ne(*config_.pad_token).nonzero().squeeze(1);
    read = ids.index_select(0, kept);
    rows = rows.index_select(0, kept.to(rows.device()));
  }
  if (config_.embedding_multiplier != 1) rows = rows * config_.embedding_multiplier;
  if (read.numel() > 0) sink.lookup(*embedding_, read.to(rows.device()), rows);
}

at::Tensor Model::unembed(const at::Tensor& normed) const {
  const at::NoGradGuard no_grad;
  at::Tensor logits = linear(normed, *head_, nullptr, nullptr);
  if (config_.logits_divisor != 1) logits.div_(config_.logits_divisor);
  return logits;
}

at::Tensor Model::unembed_backward(const at::Tensor& normed, at::Tensor dlogits, GradientSink& sink) const {
  const at::NoGradGuard no_grad;
  if (config_.logits_divisor != 1) dlogits.div_(config_.logits_divisor);
  sink.linear(*head_, normed, dlogits);
  return at::mm(dlogits, head_->data);
}

at::Tensor Model::logits(const at::Tensor& rows) const {
  const at::NoGradGuard no_grad;
  return unembed(final_normed(rows, nullptr));
}

at::Tensor Model::live_layer(int64_t layer, const at::Tensor& x, std::span<const SequenceRows> runs,
                             const Rotary& tables, GradientSink& sink) const {
  return decoder_layer({config_, layer, runs, tables, &sink}, layers_[layer], x);
}

}  // namespace lathe::model
