// One decoder layer: x + mixer(norm(x)), then + mlp(norm(x)). The mixer is attention or a gated delta rule.
//
// A pass serves or teaches. Serving (no sink): each run reads its state and its own earlier rows, and moves the state
// on. Teaching (a sink, autograd on): each run reads its state as a constant and its own earlier rows with gradient;
// states stay as they are, and parameters' gradients go to the sink.
//
// Shapes: N packed rows, D hidden size; of attention: H query heads, G key/value heads, K head size.
// Threads: pure functions but for the states of a serving pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/sequence_state.h"
#include "weights/gradient.h"
#include "weights/weight_store.h"

namespace lathe::model {

// Rows [begin, begin + count) of a packed batch are tokens position .. position + count - 1 of one sequence. A serving
// pass needs position == state->length(); a teaching pass a state that was taken at `position`.
struct Run {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t position = 0;
  SequenceState* state = nullptr;
};

// Rotation tables of packed rows: cos and sin [N, rotary_dim / 2] in the compute dtype.
struct Rotary {
  at::Tensor cos, sin;
};

struct Pass {
  const ModelConfig& config;
  int64_t layer;
  std::span<const Run> runs;
  const Rotary& rotary;
  weights::GradientSink* sink;  // null: serving
};

// A bias or norm that the architecture lacks is null.
struct AttentionParameters {
  const weights::Parameter *qkv = nullptr, *qkv_bias = nullptr, *q_norm = nullptr, *k_norm = nullptr;
  const weights::Parameter *output = nullptr, *output_bias = nullptr;
};

struct DeltaParameters {
  const weights::Parameter* qkvz = nullptr;  // queries, keys, values, output gate
  const weights::Parameter* ba = nullptr;    // write strength β, decay
  const weights::Parameter* conv = nullptr;  // [channels * kernel]
  const weights::Parameter *a_log = nullptr, *dt_bias = nullptr, *norm = nullptr, *output = nullptr;
};

struct LayerParameters {
  const weights::Parameter *input_norm = nullptr, *post_norm = nullptr;
  AttentionParameters attention;  // filled if the layer's mixer is kAttention
  DeltaParameters delta;          // filled if it is kDelta
  const weights::Parameter *gate_up = nullptr, *gate_up_bias = nullptr, *down = nullptr, *down_bias = nullptr;
};

// The parameters of a layer, fused as the model uses them, appended to `specs`; and found again by the same names.
void add_layer_specs(const ModelConfig& config, int64_t layer, std::vector<weights::ParameterSpec>& specs);
LayerParameters find_layer(const ModelConfig& config, int64_t layer, const weights::WeightStore& store);

// h [N, D], already normed -> [N, D].
at::Tensor attention_mixer(const Pass& pass, const AttentionParameters& p, const at::Tensor& h);
at::Tensor delta_mixer(const Pass& pass, const DeltaParameters& p, const at::Tensor& h);

// x [N, D] -> [N, D].
at::Tensor decoder_layer(const Pass& pass, const LayerParameters& p, const at::Tensor& x);

}  // namespace lathe::model
