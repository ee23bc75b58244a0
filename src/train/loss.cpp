#include "train/loss.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "model/ops.h"

namespace lathe::train {
namespace {

// fp32 logits of a slice and their soft-max stay under this.
constexpr int64_t kSliceBytes = int64_t{32} << 20;

int64_t slice_rows(const model::Model& model) {
  return std::max<int64_t>(16, kSliceBytes / (4 * model.config().vocab_size));
}

struct Slice {
  at::Tensor rows;     // [s] indices of graded live rows
  at::Tensor targets;  // [s, 1]
  at::Tensor weights;  // [s, 1], divided by the batch's total weight
};

std::vector<Slice> graded_slices(const model::Model& model, const Batch& batch) {
  std::vector<Slice> slices;
  const at::Tensor graded = batch.weights.nonzero().squeeze(1);
  for (const at::Tensor& rows : graded.split(slice_rows(model))) {
    const auto device = model.options().device();
    slices.push_back({rows.to(device), batch.targets.index_select(0, rows).unsqueeze(1).to(device),
                      (batch.weights.index_select(0, rows) / batch.total_weight).unsqueeze(1).to(device)});
  }
  return slices;
}

}  // namespace

double mean_loss(const model::Model& model, const Batch& batch, const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  double loss = 0;
  for (const Slice& slice : graded_slices(model, batch)) {
    const at::Tensor log_p = at::log_softmax(model.logits(x.index_select(0, slice.rows)), -1, at::kFloat);
    loss -= (log_p.gather(1, slice.targets) * slice.weights).sum(at::kDouble).item<double>();
  }
  return loss;
}

LossGradient loss_gradient(const model::Model& model, const Batch& batch, const at::Tensor& x,
                           weights::GradientSink& sink) {
  LossGradient out{.dx = at::zeros_like(x)};
  for (const Slice& slice : graded_slices(model, batch)) {
    const at::Tensor leaf = x.index_select(0, slice.rows).requires_grad_();
    at::Tensor h;
    {
      const at::AutoGradMode with_grad(true);
      h = model::rms_norm(leaf, model.final_norm(), model.config().rms_norm_eps, &sink);
    }
    const at::NoGradGuard no_grad;
    const at::Tensor h_value = h.detach();
    const at::Tensor log_p = at::log_softmax(model::linear(h_value, model.head(), nullptr, nullptr), -1, at::kFloat);
    out.loss -= (log_p.gather(1, slice.targets) * slice.weights).sum(at::kDouble).item<double>();

    // d loss / d logits = weight (p - onehot(target))
    at::Tensor dlogits = at::exp(log_p).mul_(slice.weights);
    dlogits.scatter_add_(1, slice.targets, -slice.weights);
    dlogits = dlogits.to(h_value.scalar_type());
    sink.linear(model.head(), h_value, dlogits);
    const at::Tensor dh = at::mm(dlogits, model.head().data);
    out.dx.index_copy_(0, slice.rows, torch::autograd::grad({h}, {leaf}, {dh})[0]);
  }
  return out;
}

}  // namespace lathe::train
