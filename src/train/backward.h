// The backward pass of one batch: loss and every gradient. The part of a step that knows nothing of optimizers.
//
// Threads: the caller is the only writer of the weights. Exceptions of torch come through; Trainer turns them into
// errors.
#pragma once

#include <optional>

#include "model/model.h"
#include "train/batch.h"
#include "train/supervised.h"
#include "weights/gradient.h"

namespace lathe::train {

// What a pass may take to be fast.
struct PassLimits {
  int64_t chunk_rows = 1024;  // rows forward at once
  // If the live rows' activations take no more than this, and no sequence has several live runs, they are kept from the
  // forward pass; else each layer is run again as the backward pass comes to it.
  int64_t kept_bytes = 0;
};

// The pass in stages, for those who do something between them. A stage hands its gradients to the sink it is given:
// those of parameters that belong to that stage alone are then complete. A tied table gets gradients from loss() and
// from embedding(). The weights of a finished layer may be changed: later stages do not read them.
// Memory: keys and values of all rows, and the live rows' input of every layer, each until its stage is over; or their
// activations.
class BackwardPass {
 public:
  // Runs context and live rows forward. `model` and `batch` outlive this.
  BackwardPass(const model::Model& model, const Batch& batch, const PassLimits& limits);
  BackwardPass(const BackwardPass&) = delete;
  BackwardPass& operator=(const BackwardPass&) = delete;

  // First. The objective's loss over the batch, divided by `divisor`; gradients of head and final norm. If it is not
  // finite, the later stages make no sense.
  double loss(const Objective& objective, double divisor, weights::GradientSink& sink);
  // Then layer by layer, last to first.
  int64_t layers_left() const { return layer_; }
  void next_layer(weights::GradientSink& sink);
  // Last. The gradient of the embedding lookup.
  void embedding(weights::GradientSink& sink);

 private:
  // Where gradients of a layer go that was run before its sink was known.
  struct Relay final : weights::GradientSink {
    void linear(const weights::Parameter& weight, at::Tensor x, at::Tensor dy) override;
    void lookup(const weights::Parameter& table, at::Tensor ids, at::Tensor dx) override;
    void vector(const weights::Parameter& vector, at::Tensor gradient) override;
    weights::GradientSink* sink = nullptr;
  };

  void run_live_layers();

  const model::Model& model_;
  const Batch& batch_;
  LiveForward live_;
  model::Rotary rotary_;
  Relay relay_;
  std::vector<at::Tensor> outputs_;  // of each layer, with what autograd kept of it; empty if layers are run again
  at::Tensor dx_;                    // gradient with respect to the input of the stage done last
  int64_t layer_;
};

// All stages: the objective's loss over the batch, divided by `divisor` (by default its size of this batch); all
// gradients go to `sink`. If the loss is not finite, nothing further is computed.
double backward(const model::Model& model, const Batch& batch, const PassLimits& limits, weights::GradientSink& sink,
                const Objective& objective = kSupervised, std::optional<double> divisor = {});

}  // namespace lathe::train
