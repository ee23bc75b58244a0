#include "model/layers/decoder_layer.h"

#include <ATen/ATen.h>

#include <string>

#include "model/layers/specs.h"
#include "model/ops.h"

namespace lathe::model {
namespace {

std::string layer_path(const ModelConfig& c, int64_t layer) {
  return c.prefix + "layers." + std::to_string(layer) + ".";
}

// As wide as the stream, whatever type the norm's weight is held in.
at::Tensor normed(const Pass& pass, const weights::Parameter& weight, const at::Tensor& x) {
  return rms_norm(x, weight, pass.config.rms_norm_eps, pass.config.norm, pass.sink).to(x.scalar_type());
}

// The stream and what a mixer or an MLP adds to it.
at::Tensor residual(const at::Tensor& x, const at::Tensor& added, double multiplier) {
  return multiplier == 1 ? x + added : x + added * multiplier;
}

}  // namespace

void add_layer_specs(const ModelConfig& c, int64_t layer, std::vector<weights::ParameterSpec>& specs) {
  const std::string p = layer_path(c, layer);
  specs.push_back(single(p + "input_layernorm.weight", {c.hidden_size}));
  if (c.mixer(layer) == Mixer::kAttention) {
    add_attention_specs(c, p + "self_attn.", specs);
  } else {
    add_delta_specs(c, p + "linear_attn.", specs);
  }
  specs.push_back(single(p + "post_attention_layernorm.weight", {c.hidden_size}));
  add_mlp_specs(c, p + "mlp.", specs);
}

LayerParameters find_layer(const ModelConfig& c, int64_t layer, const weights::WeightStore& store) {
  const std::string p = layer_path(c, layer);
  LayerParameters found{.input_norm = &store.parameter(p + "input_layernorm.weight"),
                        .post_norm = &store.parameter(p + "post_attention_layernorm.weight"),
                        .mlp = find_mlp(c, p + "mlp.", store)};
  if (c.mixer(layer) == Mixer::kAttention) {
    found.attention = find_attention(c, p + "self_attn.", store);
  } else {
    found.delta = find_delta(p + "linear_attn.", store);
  }
  return found;
}

at::Tensor decoder_layer(const Pass& pass, const LayerParameters& p, const at::Tensor& x) {
  const ModelConfig& c = pass.config;
  const at::Tensor h = normed(pass, *p.input_norm, x);
  const at::Tensor mixed =
      c.mixer(pass.layer) == Mixer::kAttention ? attention_mixer(pass, p.attention, h) : delta_mixer(pass, p.delta, h);
  const at::Tensor y = residual(x, mixed, c.residual_multiplier);
  return residual(y, mlp(pass, p.mlp, normed(pass, *p.post_norm, y)), c.residual_multiplier);
}

}  // namespace lathe::model
