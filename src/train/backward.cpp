#include "train/backward.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "train/loss.h"

namespace lathe::train {

BackwardPass::BackwardPass(const model::Model& model, const Batch& batch, int64_t chunk_rows)
    : model_(model),
      batch_(batch),
      live_(forward_live(model, batch, chunk_rows, /*keep_layers=*/true)),
      rotary_(model.rotary(live_.runs, batch.live_rows)),
      layer_(model.config().layers) {}

double BackwardPass::loss(const Objective& objective, double divisor, weights::GradientSink& sink) {
  LossGradient loss = loss_gradient(model_, graded_rows(batch_), live_.inputs.back(), objective, divisor, sink);
  live_.inputs.back().reset();
  dx_ = std::move(loss.dx);
  return loss.loss;
}

// Recomputes the layer on its kept input with autograd on, and walks back through it alone.
void BackwardPass::next_layer(weights::GradientSink& sink) {
  --layer_;
  const at::AutoGradMode with_grad(true);
  const at::Tensor x = live_.inputs[layer_].detach().requires_grad_();
  const at::Tensor y = model_.live_layer(layer_, x, live_.runs, rotary_, sink);
  dx_ = torch::autograd::grad({y}, {x}, {dx_})[0];
  live_.inputs[layer_].reset();
}

// Rows that read the padding token get no gradient (ModelConfig::pad_token).
void BackwardPass::embedding(weights::GradientSink& sink) {
  at::Tensor ids = batch_.live_ids, rows = dx_;
  if (model_.config().pad_token) {
    const at::Tensor kept = ids.ne(*model_.config().pad_token).nonzero().squeeze(1);
    ids = ids.index_select(0, kept);
    rows = rows.index_select(0, kept.to(rows.device()));
  }
  if (ids.numel() > 0) sink.lookup(model_.embedding(), ids.to(rows.device()), rows);
}

double backward(const model::Model& model, const Batch& batch, int64_t chunk_rows, weights::GradientSink& sink,
                const Objective& objective, std::optional<double> divisor) {
  BackwardPass pass(model, batch, chunk_rows);
  const double loss = pass.loss(objective, divisor ? *divisor : objective.size(graded_rows(batch)), sink);
  if (!std::isfinite(loss)) return loss;
  while (pass.layers_left() > 0) pass.next_layer(sink);
  pass.embedding(sink);
  return loss;
}

}  // namespace lathe::train
