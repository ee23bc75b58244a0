#include "model/layers/mlp.h"

#include <ATen/ATen.h>

#include "model/layers/specs.h"
#include "model/ops.h"

namespace lathe::model {

using weights::ParameterSpec;

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

MlpParameters find_mlp(const ModelConfig& c, const std::string& p, const weights::WeightStore& store) {
  return {.gate_up = &store.parameter(p + "gate_up_proj.weight"),
          .gate_up_bias = find_if(c.mlp_bias, store, p + "gate_up_proj.bias"),
          .down = &store.parameter(p + "down_proj.weight"),
          .down_bias = find_if(c.mlp_bias, store, p + "down_proj.bias")};
}

at::Tensor mlp(const Pass& pass, const MlpParameters& p, const at::Tensor& h) {
  return linear(silu_mul(linear(h, *p.gate_up, p.gate_up_bias, pass.sink)), *p.down, p.down_bias, pass.sink);
}

int64_t mlp_row(const ModelConfig& c) {
  return 3 * c.intermediate_size;
}

int64_t mlp_graph(const ModelConfig& c) {
  return 8 * c.intermediate_size;
}

int64_t mlp_kept(const ModelConfig& c) {
  return 3 * c.intermediate_size;
}

}  // namespace lathe::model
