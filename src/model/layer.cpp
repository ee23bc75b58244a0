#include "model/layer.h"

#include <ATen/ATen.h>

#include "model/ops.h"

namespace lathe::model {
namespace {

using weights::Parameter;
using weights::ParameterSpec;

std::string layer_prefix(const ModelConfig& c, int64_t layer) {
  return c.prefix + "layers." + std::to_string(layer) + ".";
}

ParameterSpec single(const std::string& name, std::vector<int64_t> shape) {
  return {name, {{name, std::move(shape)}}};
}

void add_attention_specs(const ModelConfig& c, const std::string& p, std::vector<ParameterSpec>& specs) {
  const int64_t d = c.hidden_size, heads = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const int64_t q = c.attention_gate ? 2 * heads : heads;
  specs.push_back({p + "qkv_proj.weight",
                   {{p + "q_proj.weight", {q, d}}, {p + "k_proj.weight", {kv, d}}, {p + "v_proj.weight", {kv, d}}}});
  if (c.qkv_bias) {
    specs.push_back(
        {p + "qkv_proj.bias", {{p + "q_proj.bias", {q}}, {p + "k_proj.bias", {kv}}, {p + "v_proj.bias", {kv}}}});
  }
  if (c.qk_norm) {
    specs.push_back(single(p + "q_norm.weight", {c.head_dim}));
    specs.push_back(single(p + "k_norm.weight", {c.head_dim}));
  }
  specs.push_back(single(p + "o_proj.weight", {d, heads}));
  if (c.output_bias) specs.push_back(single(p + "o_proj.bias", {d}));
}

void add_delta_specs(const ModelConfig& c, const std::string& p, std::vector<ParameterSpec>& specs) {
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

void add_mlp_specs(const ModelConfig& c, const std::string& p, std::vector<ParameterSpec>& specs) {
  const int64_t d = c.hidden_size, inner = c.intermediate_size;
  specs.push_back(
      {p + "gate_up_proj.weight", {{p + "gate_proj.weight", {inner, d}}, {p + "up_proj.weight", {inner, d}}}});
  specs.push_back(single(p + "down_proj.weight", {d, inner}));
  if (c.mlp_bias) {
    specs.push_back({p + "gate_up_proj.bias", {{p + "gate_proj.bias", {inner}}, {p + "up_proj.bias", {inner}}}});
    specs.push_back(single(p + "down_proj.bias", {d}));
  }
}

}  // namespace

void add_layer_specs(const ModelConfig& c, int64_t layer, std::vector<ParameterSpec>& specs) {
  const std::string p = layer_prefix(c, layer);
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
  const std::string p = layer_prefix(c, layer);
  const auto get = [&](const char* name) { return &store.parameter(p + name); };
  const auto get_if = [&](bool present, const char* name) { return present ? get(name) : nullptr; };
  LayerParameters found{.input_norm = get("input_layernorm.weight"),
                        .post_norm = get("post_attention_layernorm.weight"),
                        .gate_up = get("mlp.gate_up_proj.weight"),
                        .gate_up_bias = get_if(c.mlp_bias, "mlp.gate_up_proj.bias"),
                        .down = get("mlp.down_proj.weight"),
                        .down_bias = get_if(c.mlp_bias, "mlp.down_proj.bias")};
  if (c.mixer(layer) == Mixer::kAttention) {
    found.attention = {.qkv = get("self_attn.qkv_proj.weight"),
                       .qkv_bias = get_if(c.qkv_bias, "self_attn.qkv_proj.bias"),
                       .q_norm = get_if(c.qk_norm, "self_attn.q_norm.weight"),
                       .k_norm = get_if(c.qk_norm, "self_attn.k_norm.weight"),
                       .output = get("self_attn.o_proj.weight"),
                       .output_bias = get_if(c.output_bias, "self_attn.o_proj.bias")};
  } else {
    found.delta = {.qkvz = get("linear_attn.in_proj_qkvz.weight"),
                   .ba = get("linear_attn.in_proj_ba.weight"),
                   .conv = get("linear_attn.conv1d.weight"),
                   .a_log = get("linear_attn.A_log"),
                   .dt_bias = get("linear_attn.dt_bias"),
                   .norm = get("linear_attn.norm.weight"),
                   .output = get("linear_attn.out_proj.weight")};
  }
  return found;
}

at::Tensor attention_mixer(const Pass& pass, const AttentionParameters& p, const at::Tensor& h) {
  const ModelConfig& c = pass.config;
  const int64_t rows = h.size(0), query_heads = c.attention_gate ? 2 * c.heads : c.heads;
  const at::Tensor qkv =
      linear(h, *p.qkv, p.qkv_bias, pass.sink).view({rows, query_heads + 2 * c.kv_heads, c.head_dim});
  // Split in one go, so that the backward pass joins the three in one go.
  const std::vector<at::Tensor> split = qkv.split_with_sizes({query_heads, c.kv_heads, c.kv_heads}, 1);
  at::Tensor q = split[0], k = split[1], gate;
  const at::Tensor& v = split[2];
  if (c.attention_gate) {  // query and gate lie side by side, head by head
    const std::vector<at::Tensor> pairs = q.unflatten(1, {c.heads, 2}).unbind(2);
    q = pairs[0];
    gate = pairs[1];
  }
  if (p.q_norm) q = rms_norm(q, *p.q_norm, c.rms_norm_eps, c.norm, pass.sink);
  if (p.k_norm) k = rms_norm(k, *p.k_norm, c.rms_norm_eps, c.norm, pass.sink);
  q = rotate(q, pass.rotary.cos, pass.rotary.sin);
  k = rotate(k, pass.rotary.cos, pass.rotary.sin);

  std::vector<at::Tensor> mixed;
  for (const Run& run : pass.runs) {
    const auto own = [&](const at::Tensor& t) { return t.narrow(0, run.begin, run.count); };
    if (pass.sink) {
      const auto behind = [&](const at::Tensor& constants, const at::Tensor& t) {
        return run.position == 0 ? own(t).transpose(0, 1) : at::cat({constants, own(t).transpose(0, 1)}, 1);
      };
      mixed.push_back(attention(own(q), behind(run.state->keys(pass.layer, run.position), k),
                                behind(run.state->values(pass.layer, run.position), v)));
    } else {
      run.state->append(pass.layer, own(k), own(v));
      const int64_t end = run.position + run.count;
      mixed.push_back(attention(own(q), run.state->keys(pass.layer, end), run.state->values(pass.layer, end)));
    }
  }
  at::Tensor out = mixed.size() == 1 ? mixed[0] : at::cat(mixed, 0);
  if (gate.defined()) out = out * at::sigmoid(gate.reshape({rows, -1}));
  return linear(out, *p.output, p.output_bias, pass.sink);
}

at::Tensor decoder_layer(const Pass& pass, const LayerParameters& p, const at::Tensor& x) {
  const ModelConfig& c = pass.config;
  const at::Tensor h = rms_norm(x, *p.input_norm, c.rms_norm_eps, c.norm, pass.sink);
  const at::Tensor y = x + (c.mixer(pass.layer) == Mixer::kAttention ? attention_mixer(pass, p.attention, h)
                                                                     : delta_mixer(pass, p.delta, h));
  const at::Tensor normed = rms_norm(y, *p.post_norm, c.rms_norm_eps, c.norm, pass.sink);
  return y + linear(silu_mul(linear(normed, *p.gate_up, p.gate_up_bias, pass.sink)), *p.down, p.down_bias, pass.sink);
}

}  // namespace lathe::model
