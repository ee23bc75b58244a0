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

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kFinalNorm = "model.norm.weight";
constexpr const char* kHead = "lm_head.weight";

std::string prefix(int64_t layer) {
  return "model.layers." + std::to_string(layer) + ".";
}

ParameterSpec single(const std::string& name, std::vector<int64_t> shape) {
  return {name, {{name, std::move(shape)}}};
}

void add_layer_specs(const ModelConfig& c, int64_t layer, std::vector<ParameterSpec>& specs) {
  const std::string p = prefix(layer), attention = p + "self_attn.", mlp = p + "mlp.";
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim, d = c.hidden_size, inner = c.intermediate_size;
  specs.push_back(single(p + "input_layernorm.weight", {d}));
  specs.push_back({attention + "qkv_proj.weight",
                   {{attention + "q_proj.weight", {q, d}},
                    {attention + "k_proj.weight", {kv, d}},
                    {attention + "v_proj.weight", {kv, d}}}});
  if (c.qkv_bias) {
    specs.push_back(
        {attention + "qkv_proj.bias",
         {{attention + "q_proj.bias", {q}}, {attention + "k_proj.bias", {kv}}, {attention + "v_proj.bias", {kv}}}});
  }
  if (c.qk_norm) {
    specs.push_back(single(attention + "q_norm.weight", {c.head_dim}));
    specs.push_back(single(attention + "k_norm.weight", {c.head_dim}));
  }
  specs.push_back(single(attention + "o_proj.weight", {d, q}));
  if (c.output_bias) specs.push_back(single(attention + "o_proj.bias", {d}));
  specs.push_back(single(p + "post_attention_layernorm.weight", {d}));
  specs.push_back(
      {mlp + "gate_up_proj.weight", {{mlp + "gate_proj.weight", {inner, d}}, {mlp + "up_proj.weight", {inner, d}}}});
  specs.push_back(single(mlp + "down_proj.weight", {d, inner}));
  if (c.mlp_bias) {
    specs.push_back({mlp + "gate_up_proj.bias", {{mlp + "gate_proj.bias", {inner}}, {mlp + "up_proj.bias", {inner}}}});
    specs.push_back(single(mlp + "down_proj.bias", {d}));
  }
}

// Keys and values of a run's past and of its own rows; how depends on whether the rows are served or taught.
using Attend = std::function<at::Tensor(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v)>;

// x [N, D] -> [N, D]; attend gets q [N, H, K] and k, v [N, G, K], all rotated, and returns [N, H * K].
at::Tensor decoder_layer(const ModelConfig& c, const LayerParameters& p, const at::Tensor& x, const Rotary& rotary,
                         const Attend& attend, GradientSink* sink) {
  const at::Tensor qkv = linear(rms_norm(x, *p.input_norm, c.rms_norm_eps, sink), *p.qkv, p.qkv_bias, sink)
                             .view({x.size(0), c.heads + 2 * c.kv_heads, c.head_dim});
  at::Tensor q = qkv.narrow(1, 0, c.heads);
  at::Tensor k = qkv.narrow(1, c.heads, c.kv_heads);
  const at::Tensor v = qkv.narrow(1, c.heads + c.kv_heads, c.kv_heads);
  if (p.q_norm) q = rms_norm(q, *p.q_norm, c.rms_norm_eps, sink);
  if (p.k_norm) k = rms_norm(k, *p.k_norm, c.rms_norm_eps, sink);
  const at::Tensor mixed = attend(rotate(q, rotary.cos, rotary.sin), rotate(k, rotary.cos, rotary.sin), v);
  const at::Tensor y = x + linear(mixed, *p.output, p.output_bias, sink);
  const at::Tensor gate_up = linear(rms_norm(y, *p.post_norm, c.rms_norm_eps, sink), *p.gate_up, p.gate_up_bias, sink);
  return y + linear(silu_mul(gate_up), *p.down, p.down_bias, sink);
}

// 1 / theta^(2j / K), rescaled band by band for Llama 3.1 and later.
at::Tensor inverse_frequencies(const ModelConfig& c) {
  at::Tensor frequencies = at::empty({c.head_dim / 2}, at::kFloat);
  float* out = frequencies.data_ptr<float>();
  for (int64_t j = 0; j < c.head_dim / 2; ++j) {
    const auto exponent = static_cast<float>(2 * j) / static_cast<float>(c.head_dim);
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
  const auto table = [&](const char* name) {
    ParameterSpec spec = single(name, {config.vocab_size, config.hidden_size});
    spec.vocabulary = true;
    return spec;
  };
  specs.push_back(table(kEmbedding));
  for (int64_t layer = 0; layer < config.layers; ++layer) add_layer_specs(config, layer, specs);
  specs.push_back(single(kFinalNorm, {config.hidden_size}));
  if (!config.tie_embeddings) specs.push_back(table(kHead));
  return specs;
}

Model::Model(ModelConfig config, const weights::WeightStore& store)
    : config_(std::move(config)),
      embedding_(&store.parameter(kEmbedding)),
      final_norm_(&store.parameter(kFinalNorm)),
      head_(config_.tie_embeddings ? embedding_ : &store.parameter(kHead)),
      inverse_frequencies_(inverse_frequencies(config_)) {
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    const auto get = [&](const char* name) { return &store.parameter(prefix(layer) + name); };
    const auto get_if = [&](bool present, const char* name) { return present ? get(name) : nullptr; };
    layers_.push_back({.input_norm = get("input_layernorm.weight"),
                       .qkv = get("self_attn.qkv_proj.weight"),
                       .qkv_bias = get_if(config_.qkv_bias, "self_attn.qkv_proj.bias"),
                       .q_norm = get_if(config_.qk_norm, "self_attn.q_norm.weight"),
                       .k_norm = get_if(config_.qk_norm, "self_attn.k_norm.weight"),
                       .output = get("self_attn.o_proj.weight"),
                       .output_bias = get_if(config_.output_bias, "self_attn.o_proj.bias"),
                       .post_norm = get("post_attention_layernorm.weight"),
                       .gate_up = get("mlp.gate_up_proj.weight"),
                       .gate_up_bias = get_if(config_.mlp_bias, "mlp.gate_up_proj.bias"),
                       .down = get("mlp.down_proj.weight"),
                       .down_bias = get_if(config_.mlp_bias, "mlp.down_proj.bias")});
  }
}

at::TensorOptions Model::options() const {
  return embedding_->data.options();
}

Rotary Model::rotary(std::span<const Run> runs, int64_t rows) const {
  at::Tensor positions = at::empty({rows, 1}, at::kFloat);
  float* out = positions.data_ptr<float>();
  for (const Run& run : runs) {
    for (int64_t i = 0; i < run.count; ++i) out[run.begin + i] = static_cast<float>(run.position + i);
  }
  const at::Tensor angles = (positions * inverse_frequencies_).to(options().device());
  return {angles.cos().to(options()), angles.sin().to(options())};
}

at::Tensor Model::forward(const at::Tensor& ids, std::span<const Run> runs, const LayerTap& tap) const {
  const at::NoGradGuard no_grad;
  const int64_t rows = ids.size(0);
  const Rotary rotary_tables = rotary(runs, rows);
  at::Tensor x = at::embedding(embedding_->data, ids);
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    if (tap) tap(layer, x);
    const Attend attend = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
      at::Tensor mixed = at::empty({rows, config_.heads * config_.head_dim}, q.options());
      for (const Run& run : runs) {
        run.state->append(layer, k.narrow(0, run.begin, run.count), v.narrow(0, run.begin, run.count));
        const int64_t end = run.position + run.count;
        mixed.narrow(0, run.begin, run.count)
            .copy_(attention(q.narrow(0, run.begin, run.count), run.state->keys(layer, end),
                             run.state->values(layer, end)));
      }
      return mixed;
    };
    x = decoder_layer(config_, layers_[layer], x, rotary_tables, attend, nullptr);
  }
  if (tap) tap(config_.layers, x);
  for (const Run& run : runs) run.state->advance(run.count);
  return x;
}

at::Tensor Model::logits(const at::Tensor& rows) const {
  const at::NoGradGuard no_grad;
  return linear(rms_norm(rows, *final_norm_, config_.rms_norm_eps, nullptr), *head_, nullptr, nullptr);
}

at::Tensor Model::live_layer(int64_t layer, const at::Tensor& x, std::span<const Run> runs, const Rotary& rotary_tables,
                             GradientSink& sink) const {
  const Attend attend = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    std::vector<at::Tensor> mixed;
    for (const Run& run : runs) {
      const auto with_context = [&](const at::Tensor& constants, const at::Tensor& own) {
        return at::cat({constants, own.narrow(0, run.begin, run.count).transpose(0, 1)}, 1);
      };
      mixed.push_back(attention(q.narrow(0, run.begin, run.count),
                                with_context(run.state->keys(layer, run.position), k),
                                with_context(run.state->values(layer, run.position), v)));
    }
    return at::cat(mixed, 0);
  };
  return decoder_layer(config_, layers_[layer], x, rotary_tables, attend, &sink);
}

}  // namespace lathe::model
