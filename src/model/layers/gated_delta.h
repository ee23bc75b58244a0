// Gated DeltaNet: a convolution over time, then the gated delta rule (delta_rule.h), then a gated norm.
//
// Shapes: N packed rows, D hidden size.
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

struct DeltaParameters {
  const weights::Parameter* qkvz = nullptr;  // queries, keys, values, output gate
  const weights::Parameter* ba = nullptr;    // write strength β, decay
  const weights::Parameter* conv = nullptr;  // [channels * kernel]
  const weights::Parameter *a_log = nullptr, *dt_bias = nullptr, *norm = nullptr, *output = nullptr;
};

// Its parameters under `path`, fused as the model uses them, appended to `specs`; and found again by the same names.
void add_delta_specs(const ModelConfig& config, const std::string& path, std::vector<weights::ParameterSpec>& specs);
DeltaParameters find_delta(const std::string& path, const weights::WeightStore& store);

// h [N, D], already normed -> [N, D].
at::Tensor delta_mixer(const Pass& pass, const DeltaParameters& p, const at::Tensor& h);

// What it costs, in elements: for a row while it is computed; for a live row, what autograd keeps of it (its own in
// fp32).
int64_t delta_row(const ModelConfig& config);
int64_t delta_kept(const ModelConfig& config);
// Bytes of a sequence's state, however long it is. `element`: bytes of the compute dtype.
int64_t delta_state_bytes(const ModelConfig& config, int64_t element);

}  // namespace lathe::model
