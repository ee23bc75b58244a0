#include "train/backward.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <utility>

#include "train/loss.h"

namespace lathe::train {

namespace {

bool keeps_activations(const model::Model& model, const Batch& batch, const PassLimits& limits) {
  return has_single_runs(batch) && batch.live_rows * model.cost().activations() <= limits.kept_bytes;
}

}  // namespace

BackwardPass::BackwardPass(const model::Model& model, const Batch& batch, const PassLimits& limits)
    : model_(model), batch_(batch), layer_(model.config().layers) {
  const bool keep = keeps_activations(model, batch, limits);
  live_ = keep ? forward_context(model, batch, limits.chunk_rows)
               : forward_live(model, batch, limits.chunk_rows, /*keep_layers=*/true);
  rotary_ = model.rotary(live_.runs, batch.live_rows);
  if (keep) run_live_layers();
}

// Each layer on an input that begins a graph of its own: the backward pass walks through one at a time, as it does
// where layers are run again.
void BackwardPass::run_live_layers() {
  const at::AutoGradMode with_grad(true);
  for (int64_t layer = 0; layer < layer_; ++layer) {
    live_.inputs[layer].requires_grad_();
    outputs_.push_back(model_.live_layer(layer, live_.inputs[layer], live_.runs, rotary_, relay_));
    live_.inputs.push_back(outputs_.back().detach());
  }
}

void BackwardPass::Relay::linear(const weights::Parameter& weight, at::Tensor x, at::Tensor dy) {
  sink->linear(weight, std::move(x), std::move(dy));
}
void BackwardPass::Relay::lookup(const weights::Parameter& table, at::Tensor ids, at::Tensor dx) {
  sink->lookup(table, std::move(ids), std::move(dx));
}
void BackwardPass::Relay::vector(const weights::Parameter& vector, at::Tensor gradient) {
  sink->vector(vector, std::move(gradient));
}

double BackwardPass::loss(const Objective& objective, double divisor, weights::GradientSink& sink) {
  LossGradient loss = loss_gradient(model_, graded_rows(batch_), live_.inputs.back(), objective, divisor, sink);
  live_.inputs.back().reset();
  dx_ = std::move(loss.dx);
  return loss.loss;
}

// Walks back through one layer alone: as it was run forward, or run again now on its kept input with autograd on.
void BackwardPass::next_layer(weights::GradientSink& sink) {
  --layer_;
  const at::AutoGradMode with_grad(true);
  relay_.sink = &sink;
  const at::Tensor x = std::exchange(live_.inputs[layer_], {}).requires_grad_();
  at::Tensor y;
  if (outputs_.empty()) {
    y = model_.live_layer(layer_, x, live_.runs, rotary_, sink);
  } else {
    y = std::move(outputs_.back());
    outputs_.pop_back();
  }
  dx_ = torch::autograd::grad({y}, {x}, {dx_})[0];
}

void BackwardPass::embedding(weights::GradientSink& sink) {
  model_.embed_backward(batch_.live_ids, dx_, sink);
}

double backward(const model::Model& model, const Batch& batch, const PassLimits& limits, weights::GradientSink& sink,
                const Objective& objective, std::optional<double> divisor) {
  BackwardPass pass(model, batch, limits);
  const double loss = pass.loss(objective, divisor ? *divisor : objective.size(graded_rows(batch)), sink);
  if (!std::isfinite(loss)) return loss;
  while (pass.layers_left() > 0) pass.next_layer(sink);
  pass.embedding(sink);
  return loss;
}

}  // namespace lathe::train
