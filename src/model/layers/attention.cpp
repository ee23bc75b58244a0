#include "model/layers/attention.h"

#include <ATen/ATen.h>

#include "model/layers/specs.h"
#include "model/ops.h"

namespace lathe::model {

using weights::ParameterSpec;

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

AttentionParameters find_attention(const ModelConfig& c, const std::string& p, const weights::WeightStore& store) {
  return {.qkv = &store.parameter(p + "qkv_proj.weight"),
          .qkv_bias = find_if(c.qkv_bias, store, p + "qkv_proj.bias"),
          .q_norm = find_if(c.qk_norm, store, p + "q_norm.weight"),
          .k_norm = find_if(c.qk_norm, store, p + "k_norm.weight"),
          .output = &store.parameter(p + "o_proj.weight"),
          .output_bias = find_if(c.output_bias, store, p + "o_proj.bias")};
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
  // Weights of norms may be wider than the stream; what they give is as wide as the stream again.
  if (p.q_norm) q = rms_norm(q, *p.q_norm, c.rms_norm_eps, c.norm, pass.sink).to(h.scalar_type());
  if (p.k_norm) k = rms_norm(k, *p.k_norm, c.rms_norm_eps, c.norm, pass.sink).to(h.scalar_type());
  q = rotate(q, pass.rotary.cos, pass.rotary.sin);
  k = rotate(k, pass.rotary.cos, pass.rotary.sin);

  const double scale = c.score_scale();
  std::vector<at::Tensor> mixed;
  for (const SequenceRows& run : pass.runs) {
    const auto own = [&](const at::Tensor& t) { return t.narrow(0, run.begin, run.count); };
    if (pass.sink) {
      const auto after_past = [&](const at::Tensor& constants, const at::Tensor& t) {
        return run.position == 0 ? own(t).transpose(0, 1) : at::cat({constants, own(t).transpose(0, 1)}, 1);
      };
      mixed.push_back(attention(own(q), after_past(run.state->keys(pass.layer, run.position), k),
                                after_past(run.state->values(pass.layer, run.position), v), scale));
    } else {
      run.state->append(pass.layer, own(k), own(v));
      const int64_t end = run.position + run.count;
      mixed.push_back(attention(own(q), run.state->keys(pass.layer, end), run.state->values(pass.layer, end), scale));
    }
  }
  at::Tensor out = mixed.size() == 1 ? mixed[0] : at::cat(mixed, 0);
  if (gate.defined()) out = out * at::sigmoid(gate.reshape({rows, -1}));
  return linear(out, *p.output, p.output_bias, pass.sink);
}

int64_t attention_row(const ModelConfig& c) {
  return (c.heads * (c.attention_gate ? 2 : 1) + 2 * c.kv_heads) * c.head_dim;
}

int64_t attention_kept(const ModelConfig& c) {
  return 2 * (c.heads + 2 * c.kv_heads) * c.head_dim + (c.attention_gate ? 4 : 1) * c.heads * c.head_dim;
}

int64_t attention_past(const ModelConfig& c) {
  return 2 * c.kv_heads * c.head_dim;
}

}  // namespace lathe::model
