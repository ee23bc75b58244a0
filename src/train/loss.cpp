#include "train/loss.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <vector>

#include "model/ops.h"

namespace lathe::train {
namespace {

// fp32 logits of a slice stay under the first; logits that are worked on in place, in their own type, under the others.
constexpr int64_t kSliceBytes = int64_t{32} << 20, kInPlaceBytes = int64_t{64} << 20,
                  kGpuSliceBytes = int64_t{320} << 20;

// Whether a slice is worked on in place, by kernels that know log p and its gradient from the logits alone.
bool in_place(const model::Model& model, const Objective& objective) {
  return model::can_soft_max_in_place(model.options()) && !objective.sees_distributions();
}

int64_t rows_of(int64_t numbers, const model::ModelConfig& config) {
  return std::max<int64_t>(16, numbers / config.vocab_size);
}

// As few as may be, of one size but for a row.
std::vector<RowRange> slices(const model::Model& model, const GradedRows& graded, double scale, bool in_place = false) {
  const auto element = static_cast<int64_t>(model.options().dtype().itemsize());
  const int64_t bytes = model.options().device().is_cuda() ? kGpuSliceBytes : kInPlaceBytes;
  const int64_t most = in_place ? rows_of(bytes / element, model.config()) : slice_rows(model.config());
  const int64_t count = (graded.size() + most - 1) / most;
  std::vector<RowRange> ranges;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = i * graded.size() / count;
    ranges.push_back({graded, begin, (i + 1) * graded.size() / count - begin, scale});
  }
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

// What a slice is to do, given log p(target) of its rows: when no row depends on another, its own answer; else its part
// of the answer about all.
RowTerms terms_of(const RowRange& range, const at::Tensor& target_log_p, const Objective& objective,
                  const RowTerms& all) {
  if (!objective.couples_rows()) return objective.row_terms(range, target_log_p.cpu());
  return {0, range.of(all.slopes)};
}

// The answer about all rows at once, if the objective needs one.
RowTerms terms_of_all(const model::Model& model, const GradedRows& graded, const at::Tensor& x,
                      const Objective& objective, double scale) {
  if (!objective.couples_rows()) return {};
  return objective.row_terms({graded, 0, graded.size(), scale}, target_log_probabilities(model, graded, x));
}

struct LogitGradient {
  double loss = 0;
  at::Tensor dlogits;  // of the logits' dtype
};

// d loss / d logits = slope (onehot(target) - p), and what an objective over distributions adds.
LogitGradient logit_gradient(const at::Tensor& logits, const RowRange& range, const Objective& objective,
                             const RowTerms& all) {
  const at::Tensor log_p = at::log_softmax(logits, -1, at::kFloat);
  const RowTerms terms = terms_of(range, of_targets(range, log_p), objective, all);
  LogitGradient out{.loss = terms.loss};
  const at::Tensor slopes = terms.slopes.unsqueeze(1).to(log_p.device());
  at::Tensor dlogits = at::exp(log_p).mul_(-slopes);
  dlogits.scatter_add_(1, targets_of(range, log_p), slopes);
  if (objective.sees_distributions()) out.loss += objective.distribution_terms(range, log_p, &dlogits);
  out.dlogits = dlogits.to(logits.scalar_type());
  return out;
}

// The same where in_place() holds: the logits' memory becomes their gradient.
LogitGradient logit_gradient_(at::Tensor logits, const RowRange& range, const Objective& objective,
                              const RowTerms& all) {
  const at::Tensor targets = range.of(range.graded.targets).to(logits.device());
  const model::SoftMaxStatistics statistics = model::soft_max_statistics(logits, targets);
  const RowTerms terms = terms_of(range, statistics.log_p, objective, all);
  const at::Tensor slopes = terms.slopes.to(logits.device(), at::kFloat).contiguous();
  model::soft_max_gradient_(logits, targets, slopes, statistics.log_sum);
  return {terms.loss, logits};
}

}  // namespace

int64_t slice_rows(const model::ModelConfig& config) {
  return rows_of(kSliceBytes / 4, config);
}

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
    loss += terms_of(range, of_targets(range, log_p), objective, all).loss;
    if (objective.sees_distributions()) loss += objective.distribution_terms(range, log_p, nullptr);
  });
  return loss;
}

LossGradient loss_gradient(const model::Model& model, const GradedRows& graded, const at::Tensor& x,
                           const Objective& objective, double divisor, weights::GradientSink& sink) {
  const RowTerms all = terms_of_all(model, graded, x, objective, 1 / divisor);
  LossGradient out{.loss = all.loss, .dx = at::zeros_like(x)};
  for (const RowRange& range : slices(model, graded, 1 / divisor, in_place(model, objective))) {
    const at::Tensor leaf = take_rows(range, x).requires_grad_();
    at::Tensor h;
    {
      const at::AutoGradMode with_grad(true);
      h = model.final_normed(leaf, &sink);
    }
    const at::NoGradGuard no_grad;
    const at::Tensor h_value = h.detach();
    const at::Tensor logits = model.unembed(h_value);
    const LogitGradient gradient = in_place(model, objective) ? logit_gradient_(logits, range, objective, all)
                                                              : logit_gradient(logits, range, objective, all);
    out.loss += gradient.loss;
    const at::Tensor dh = model.unembed_backward(h_value, gradient.dlogits, sink);
    out.dx.index_copy_(0, range.of(graded.rows).to(x.device()), torch::autograd::grad({h}, {leaf}, {dh})[0]);
  }
  return out;
}

}  // namespace lathe::train
