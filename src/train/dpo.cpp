#include "train/dpo.h"

#include <ATen/ATen.h>

#include "base/result.h"

namespace lathe::train {

Dpo::Dpo(double beta, std::vector<double> reference) : beta_(beta), reference_(std::move(reference)) {
  LATHE_CHECK(beta > 0 && !reference_.empty() && reference_.size() % 2 == 0);
}

double Dpo::size(const GradedRows& /*graded*/) const {
  return static_cast<double>(reference_.size()) / 2;
}

RowTerms Dpo::row_terms(const RowRange& range, const at::Tensor& log_p) const {
  const auto examples = static_cast<int64_t>(reference_.size());
  const at::Tensor reference = at::tensor(reference_, at::kDouble);
  const at::Tensor gain = answer_log_probabilities(range.graded, log_p, examples) - reference;  // log pi / ref
  const at::Tensor pairs = gain.view({-1, 2});
  const at::Tensor margin = beta_ * (pairs.select(1, 0) - pairs.select(1, 1));

  // -log sigmoid(m) = softplus(-m), with derivative -sigmoid(-m); the rejected answer enters with the opposite sign.
  const at::Tensor chosen = -beta_ * range.scale * at::sigmoid(-margin);
  const at::Tensor per_example = at::stack({chosen, -chosen}, 1).view({-1});
  const at::Tensor slopes = per_example.index_select(0, range.graded.sequences) * range.graded.weights;
  return {range.scale * at::softplus(-margin).sum().item<double>(), slopes.to(at::kFloat)};
}

at::Tensor answer_log_probabilities(const GradedRows& graded, const at::Tensor& log_p, int64_t examples) {
  const at::Tensor weighted = log_p.to(at::kDouble) * graded.weights;
  return at::zeros({examples}, at::kDouble).index_add_(0, graded.sequences, weighted);
}

}  // namespace lathe::train
