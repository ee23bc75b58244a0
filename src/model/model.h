// Model: the forward pass of every supported family, for serving and for teaching, over one WeightStore.
//
// Tokens come in by embed(), go through the layers, and come out by logits() or, teaching, by final_normed(), unembed()
// and unembed_backward(). Nobody else touches an embedding, a final norm or a head.
//
// Rows of several sequences are packed without padding: a batch is a list of runs, each a stretch of rows that
// continues one sequence. Linear layers see all rows at once; attention and recurrences look at each run with its own
// past only.
//
// Shapes: N packed rows, D hidden size, V vocabulary. Dtype: that of the matrices (bf16 or fp32); norms and biases may be
// held in the other one. Statistics of norms, rotations, soft-max and losses are fp32, with the rounding points of
// transformers.
// Threads: the model itself is immutable; each thread brings its own SequenceStates. The caller holds the Gate shared,
// or is the only writer.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/cost.h"
#include "model/layers/decoder_layer.h"
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
  at::Tensor forward(const at::Tensor& ids, std::span<const SequenceRows> runs, const LayerTap& tap = nullptr) const;

  // What the first layer reads: ids [N] int64 -> [N, D]. No gradient: embed_backward() takes that of its result.
  at::Tensor embed(const at::Tensor& ids) const;
  // dx [N, D], the gradient of embed(ids)'s result; the table's goes to `sink`. Rows that read the padding token have
  // none (ModelConfig::pad_token).
  void embed_backward(const at::Tensor& ids, const at::Tensor& dx, weights::GradientSink& sink) const;

  // The final norm or, while autograd is on, its teaching twin.
  at::Tensor final_normed(const at::Tensor& rows, weights::GradientSink* sink) const;
  // Logits [n, V], compute dtype, of rows that are normed. No gradient: unembed_backward() takes that of its result.
  at::Tensor unembed(const at::Tensor& normed) const;
  // dlogits [n, V], overwritten -> the gradient [n, D] of unembed()'s argument; the head's goes to `sink`.
  at::Tensor unembed_backward(const at::Tensor& normed, at::Tensor dlogits, weights::GradientSink& sink) const;
  // Both: logits [n, V] of rows of forward()'s result.
  at::Tensor logits(const at::Tensor& rows) const;

  // Teaching: one layer on live rows x [N, D] with autograd on. Each run continues its state, a constant taken at
  // run.position. While autograd walks back through the result the gradients of the layer's parameters go to `sink`.
  at::Tensor live_layer(int64_t layer, const at::Tensor& x, std::span<const SequenceRows> runs, const Rotary& rotary,
                        weights::GradientSink& sink) const;
  Rotary rotary(std::span<const SequenceRows> runs, int64_t rows) const;

  Cost cost() const { return Cost(config_, options().dtype().itemsize()); }

 private:
  ModelConfig config_;
  std::vector<LayerParameters> layers_;
  const weights::Parameter *embedding_, *final_norm_, *head_;  // the head is the embedding itself when tied
  at::Tensor inverse_frequencies_;                             // [rotary_dim / 2] fp32
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
