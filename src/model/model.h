// Model: the forward pass of llama, qwen2, qwen3 and qwen3_5, for serving and for teaching, over one WeightStore.
//
// Rows of several sequences are packed without padding: a batch is a list of runs, each a stretch of rows that
// continues one sequence. Linear layers see all rows at once; attention and recurrences look at each run with its own
// past only.
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
#include "model/layer.h"
#include "model/sequence_state.h"
#include "weights/gradient.h"
#include "weights/weight_store.h"

namespace lathe::io {
class Env;
}

namespace lathe::model {

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

  // Serving: runs the rows through all layers without gradient and moves the states on (run.position must equal
  // state->length()). ids: [N] int64. Returns the last layer's output [N, D], before the final norm.
  at::Tensor forward(const at::Tensor& ids, std::span<const Run> runs, const LayerTap& tap = nullptr) const;

  // The final norm or, while autograd is on, its teaching twin.
  at::Tensor final_normed(const at::Tensor& rows, weights::GradientSink* sink) const;

  // Logits [n, V], compute dtype, of rows of forward()'s result.
  at::Tensor logits(const at::Tensor& rows) const;

  // Teaching: one layer on live rows x [N, D] with autograd on. Each run continues its state, a constant taken at
  // run.position. While autograd walks back through the result the gradients of the layer's parameters go to `sink`.
  at::Tensor live_layer(int64_t layer, const at::Tensor& x, std::span<const Run> runs, const Rotary& rotary,
                        weights::GradientSink& sink) const;
  Rotary rotary(std::span<const Run> runs, int64_t rows) const;

  const weights::Parameter& embedding() const { return *embedding_; }
  const weights::Parameter& final_norm() const { return *final_norm_; }
  const weights::Parameter& head() const { return *head_; }  // the embedding itself when tied

 private:
  ModelConfig config_;
  std::vector<LayerParameters> layers_;
  const weights::Parameter *embedding_, *final_norm_, *head_;
  at::Tensor inverse_frequencies_;  // [rotary_dim / 2] fp32
};

// What config.json and generation_config.json of a model directory say.
Result<ModelConfig> read_config(io::Env& env, const std::string& directory);

// Reads config.json and the weights of a model directory. The two live and die together. On at::kMeta there are shapes
// only: such a model can be asked what it is, not run.
struct LoadedModel {
  std::unique_ptr<weights::WeightStore> store;
  std::unique_ptr<Model> model;
};
Result<LoadedModel> load_model(io::Env& env, const std::string& directory, const weights::Placement& placement = {});

}  // namespace lathe::model
