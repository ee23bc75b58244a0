#include "train/backward.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "train/loss.h"

namespace lathe::train {
namespace {

// Gradient with respect to the layer's input; the gradients of its parameters go to `sink`.
at::Tensor backward_layer(const model::Model& model, int64_t layer, const at::Tensor& input, const at::Tensor& dy,
                          const LiveForward& live, const model::Rotary& rotary, weights::GradientSink& sink) {
  const at::AutoGradMode with_grad(true);
  const at::Tensor x = input.detach().requires_grad_();
  const at::Tensor y = model.live_layer(layer, x, live.runs, rotary, sink);
  return torch::autograd::grad({y}, {x}, {dy})[0];
}

// The look-up's gradient. Rows that read the padding token get none (ModelConfig::pad_token).
void backward_embedding(const model::Model& model, const Batch& batch, const at::Tensor& dx,
                        weights::GradientSink& sink) {
  at::Tensor ids = batch.live_ids, rows = dx;
  if (model.config().pad_token) {
    const at::Tensor kept = ids.ne(*model.config().pad_token).nonzero().squeeze(1);
    ids = ids.index_select(0, kept);
    rows = rows.index_select(0, kept.to(dx.device()));
  }
  if (ids.numel() > 0) sink.lookup(model.embedding(), ids.to(dx.device()), rows);
}

}  // namespace

double backward(const model::Model& model, const Batch& batch, int64_t chunk_rows, weights::GradientSink& sink,
                const Objective& objective, std::optional<double> divisor) {
  LiveForward live = forward_live(model, batch, chunk_rows, /*keep_layers=*/true);
  const GradedRows graded = graded_rows(batch);
  LossGradient loss =
      loss_gradient(model, graded, live.inputs.back(), objective, divisor.value_or(objective.size(graded)), sink);
  if (!std::isfinite(loss.loss)) return loss.loss;

  at::Tensor dx = std::move(loss.dx);
  const model::Rotary rotary = model.rotary(live.runs, batch.live_rows);
  for (int64_t layer = model.config().layers - 1; layer >= 0; --layer) {
    dx = backward_layer(model, layer, live.inputs[layer], dx, live, rotary, sink);
    live.inputs[layer].reset();
  }
  backward_embedding(model, batch, dx, sink);
  return loss.loss;
}

}  // namespace lathe::train
