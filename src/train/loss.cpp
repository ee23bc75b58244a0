#include "train/loss.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <vector>

#include "model/ops.h"

namespace lathe::train {
namespace {

// fp32 logits of a slice stay under this.
constexpr int64_t kSliceBytes = int64_t{32} << 20;

std::vector<RowRange> slices(const model::Model& model, const GradedRows& graded, double scale) {
  const int64_t rows = std::max<int64_t>(16, kSliceBytes / (4 * model.config().vocab_size));
  std::vector<RowRange> ranges;
  for (int64_t begin = 0; begin < graded.size(); begin += rows)
    ranges.push_back({graded, begin, std::min(rows, graded.size() - begin), scale});
  return ranges;
}

at::Tensor take_rows(const RowRange& range, const at::Tensor& x) {
  return x.index_select(0, range.of(range.graded.rows).to(x.device()));
}

at::Tensor targets_of(const RowRange& range, const at::Tensor& log_p) {
  return range.of(range.graded.targets).unsqueeze(1).to(log_p.device());
}

at::Tensor of_targets(const RowRange& range, const at::Tensor& log_p) {
  return log_p.gather(1, targets_of(range, log_p)).squeeze(1).to(at::kCPU);
}

// What a slice is to do, when no row depends on another: its own answer; else its part of the answer about all.
RowTerms terms_of(const RowRange& range, const at::Tensor& log_p, const Objective& objective, const RowTerms& all) {
  if (!objective.couples_rows()) return objective.row_terms(range, of_targets(range, log_p));
  return {0, range.of(all.slopes)};
}

// The answer about all rows at once, if the objective needs one.
RowTerms terms_of_all(const model::Model& model, const GradedRows& graded, const at::Tensor& x,
                      const Objective& objective, double scale) {
  if (!objective.couples_rows()) return {};
  return objective.row_terms({graded, 0, graded.size(), scale}, target_log_probabilities(model, graded, x));
}

}  // namespace

GradedRows graded_rows(const Batch& batch) {
  const at::Tensor rows = batch.weights.nonzero().squeeze(1);
  at::Tensor sequence_of_live = at::empty({batch.live_rows}, at::kLong);
  for (const LiveRun& run : batch.live) sequence_of_live.narrow(0, run.begin, run.count).fill_(run.sequence);
  return {.rows = rows,
          .targets = batch.targets.index_select(0, rows),
          .weights = batch.weights.index_select(0, rows),
          .sequences = sequence_of_live.index_select(0, rows)};
}

void visit_distributions(const model::Model& model, const GradedRows& graded, const at::Tensor& x, double scale,
                         const DistributionVisitor& visit) {
  const at::NoGradGuard no_grad;
  for (const RowRange& range : slices(model, graded, scale))
    visit(range, at::log_softmax(model.logits(take_rows(range, x)), -1, at::kFloat));
}

at::Tensor target_log_probabilities(const model::Model& model, const GradedRows& graded, const at::Tensor& x) {
  at::Tensor out = at::empty({graded.size()}, at::kFloat);
  visit_distributions(model, graded, x, 1, [&](const RowRange& range, const at::Tensor& log_p) {
    range.of(out).copy_(of_targets(range, log_p));
  });
  return out;
}

double loss_value(const model::Model& model, const GradedRows& graded, const at::Tensor& x, const Objective& objective,
                  double divisor) {
  const double scale = 1 / divisor;
  const RowTerms all = terms_of_all(model, graded, x, objective, scale);
  double loss = all.loss;
  if (objective.couples_rows() && !objective.sees_distributions()) return loss;
  visit_distributions(model, graded, x, scale, [&](const RowRange& range, const at::Tensor& log_p) {
    loss += terms_of(range, log_p, objective, all).loss;
    if (objective.sees_distributions()) loss += objective.distribution_terms(range, log_p, nullptr);
  });
  return loss;
}

LossGradient loss_gradient(const model::Model& model, const GradedRows& graded, const at::Tensor& x,
                           const Objective& objective, double divisor, weights::GradientSink& sink) {
  const RowTerms all = terms_of_all(model, graded, x, objective, 1 / divisor);
  LossGradient out{.loss = all.loss, .dx = at::zeros_like(x)};
  for (const RowRange& range : slices(model, graded, 1 / divisor)) {
    const at::Tensor leaf = take_rows(range, x).requires_grad_();
    at::Tensor h;
    {
      const at::AutoGradMode with_grad(true);
      h = model.final_normed(leaf, &sink);
    }
    const at::NoGradGuard no_grad;
    const at::Tensor h_value = h.detach();
    const at::Tensor log_p = at::log_softmax(model::linear(h_value, model.head(), nullptr, nullptr), -1, at::kFloat);
    const RowTerms terms = terms_of(range, log_p, objective, all);
    out.loss += terms.loss;

    // d loss / d logits = slope (onehot(target) - p)
    const at::Tensor slopes = terms.slopes.unsqueeze(1).to(log_p.device());
    at::Tensor dlogits = at::exp(log_p).mul_(-slopes);
    dlogits.scatter_add_(1, targets_of(range, log_p), slopes);
    if (objective.sees_distributions()) out.loss += objective.distribution_terms(range, log_p, &dlogits);
    dlogits = dlogits.to(h_value.scalar_type());
    sink.linear(model.head(), h_value, dlogits);
    const at::Tensor dh = at::mm(dlogits, model.head().data);
    out.dx.index_copy_(0, range.of(graded.rows).to(x.device()), torch::autograd::grad({h}, {leaf}, {dh})[0]);
  }
  return out;
}

}  // namespace lathe::train
