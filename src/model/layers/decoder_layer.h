// One decoder layer: x + r mixer(norm(x)), then + r mlp(norm(x)), r the residual multiplier. The mixer is attention or
// a gated delta rule.
//
// Shapes: N packed rows, D hidden size.
// Threads: pure functions but for the states of a serving pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/config.h"
#include "model/layers/attention.h"
#include "model/layers/gated_delta.h"
#include "model/layers/mlp.h"
#include "model/layers/pass.h"
#include "weights/weight_store.h"

namespace lathe::model {

struct LayerParameters {
  const weights::Parameter *input_norm = nullptr, *post_norm = nullptr;
  AttentionParameters attention;  // filled if the layer's mixer is kAttention
  DeltaParameters delta;          // filled if it is kDelta
  MlpParameters mlp;
};

// The parameters of a layer, fused as the model uses them, appended to `specs`; and found again by the same names.
void add_layer_specs(const ModelConfig& config, int64_t layer, std::vector<weights::ParameterSpec>& specs);
LayerParameters find_layer(const ModelConfig& config, int64_t layer, const weights::WeightStore& store);

// x [N, D] -> [N, D].
at::Tensor decoder_layer(const Pass& pass, const LayerParameters& p, const at::Tensor& x);

}  // namespace lathe::model
