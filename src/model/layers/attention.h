// Attention: causal, grouped-query, with rotated and perhaps normed queries and keys, perhaps gated.
//
// Shapes: N packed rows, D hidden size, H query heads, G key/value heads, K head size.
// Threads: pure functions but for the states of a serving pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/layers/pass.h"
#include "weights/weight_store.h"

namespace lathe::model {

// A bias or norm that the architecture lacks is null.
struct AttentionParameters {
  const weights::Parameter *qkv = nullptr, *qkv_bias = nullptr, *q_norm = nullptr, *k_norm = nullptr;
  const weights::Parameter *output = nullptr, *output_bias = nullptr;
};

// Its parameters under `path`, fused as the model uses them, appended to `specs`; and found again by the same names.
void add_attention_specs(const ModelConfig& config, const std::string& path,
                         std::vector<weights::ParameterSpec>& specs);
AttentionParameters find_attention(const ModelConfig& config, const std::string& path,
                                   const weights::WeightStore& store);

// h [N, D], already normed -> [N, D].
at::Tensor attention_mixer(const Pass& pass, const AttentionParameters& p, const at::Tensor& h);

// What it costs, in elements of the compute dtype: for a row while it is computed; for a live row, what autograd keeps
// of it; for a token of a sequence, what stays as its past.
int64_t attention_row(const ModelConfig& config);
int64_t attention_kept(const ModelConfig& config);
int64_t attention_past(const ModelConfig& config);

}  // namespace lathe::model
