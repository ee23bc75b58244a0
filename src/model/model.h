// Model: the forward pass of llama, qwen2 and qwen3, for serving and for teaching, over one WeightStore.
//
// Rows of several sequences are packed without padding: a batch is a list of runs, each a stretch of rows that
// continues one sequence. Linear layers see all rows at once; attention looks at each run with its own past only.
//
// Shapes: N packed rows, D hidden size, V vocabulary. Dtype: that of the weights (bf16 or fp32); statistics of norms,
// rotations, soft-max and losses are fp32, with the rounding points of transformers.
// Threads: the model itself is immutable; each thread brings its own SequenceStates. The caller holds the Gate shared,
// or is the only writer.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/sequence_state.h"
#include "weights/gradient.h"
#include "weights/weight_store.h"

namespace lathe::io {
class Env;
}

namespace lathe::model {

// Rows [begin, begin + count) of a packed batch are tokens position .. position + count - 1 of one sequence.
struct Run {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t position = 0;
  SequenceState* state = nullptr;
};

// Rotation tables of packed rows: cos and sin [N, head_dim / 2] in the compute dtype.
struct Rotary {
  at::Tensor cos, sin;
};

// Parameters of one decoder layer; a bias or norm the architecture lacks is null.
struct LayerParameters {
  const weights::Parameter *input_norm, *qkv, *qkv_bias, *q_norm, *k_norm, *output, *output_bias;
  const weights::Parameter *post_norm, *gate_up, *gate_up_bias, *down, *down_bias;
};

// Called with the input [N, D] of layer l before it runs, and with l == layers for the output of the last.
using LayerTap = std::function<void(int64_t layer, const at::Tensor& x)>;

class Model {
 public:
  // What WeightStore::load needs for this configuration, fused as the model uses it.
  static std::vector<weights::ParameterSpec> parameter_specs(const ModelConfig& config);

  // `store` must have been loaded with parameter_specs(config) and outlive the model.
  Model(ModelConfig config, const weights::WeightStore& store);

  const ModelConfig& config() const { return config_; }
  at::TensorOptions options() const;  // dtype and device of activations
  SequenceState new_state(int64_t expected_tokens) const { return {config_, options(), expected_tokens}; }

  // Serving: runs the rows through all layers without gradient, each run attending to its state and its own earlier
  // rows, and appends their keys and values to the states (run.position must equal state->length()). ids: [N] int64.
  // Returns the last layer's output [N, D], before the final norm.
  at::Tensor forward(const at::Tensor& ids, std::span<const Run> runs, const LayerTap& tap = nullptr) const;

  // Logits [n, V], compute dtype, of rows of forward()'s result.
  at::Tensor logits(const at::Tensor& rows) const;

  // Teaching: one layer on live rows x [N, D] with autograd on. Each run attends to the constants
  // state[0, run.position) and to its own earlier rows; states are only read. While autograd walks back through the
  // result the gradients of the layer's parameters go to `sink`.
  at::Tensor live_layer(int64_t layer, const at::Tensor& x, std::span<const Run> runs, const Rotary& rotary,
                        weights::GradientSink& sink) const;
  Rotary rotary(std::span<const Run> runs, int64_t rows) const;

  const weights::Parameter& embedding() const { return *embedding_; }
  const weights::Parameter& final_norm() const { return *final_norm_; }
  const weights::Parameter& head() const { return *head_; }  // the embedding itself when tied
  const LayerParameters& layer(int64_t l) const { return layers_[l]; }

 private:
  ModelConfig config_;
  std::vector<LayerParameters> layers_;
  const weights::Parameter *embedding_, *final_norm_, *head_;
  at::Tensor inverse_frequencies_;  // [head_dim / 2] fp32
};

// Reads config.json and the weights of a model directory. The two live and die together.
struct LoadedModel {
  std::unique_ptr<weights::WeightStore> store;
  std::unique_ptr<Model> model;
};
Result<LoadedModel> load_model(io::Env& env, const std::string& directory, const weights::Placement& placement = {});

}  // namespace lathe::model
