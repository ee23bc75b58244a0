// The MLP: down(silu(gate x) * up x).
//
// Threads: pure functions.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/layers/pass.h"
#include "weights/weight_store.h"

namespace lathe::model {

struct MlpParameters {
  const weights::Parameter *gate_up = nullptr, *gate_up_bias = nullptr, *down = nullptr, *down_bias = nullptr;
};

// Its parameters under `path`, fused as the model uses them, appended to `specs`; and found again by the same names.
void add_mlp_specs(const ModelConfig& config, const std::string& path, std::vector<weights::ParameterSpec>& specs);
MlpParameters find_mlp(const ModelConfig& config, const std::string& path, const weights::WeightStore& store);

// h [N, D], already normed -> [N, D].
at::Tensor mlp(const Pass& pass, const MlpParameters& p, const at::Tensor& h);

// What it costs, in elements of the compute dtype: for a row while it is computed; for a live row, what autograd keeps.
int64_t mlp_row(const ModelConfig& config);
int64_t mlp_graph(const ModelConfig& config);  // a row with what autograd keeps and its gradients
int64_t mlp_kept(const ModelConfig& config);

}  // namespace lathe::model
