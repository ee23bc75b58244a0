#include "train/kl.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "base/result.h"
#include "train/loss.h"

namespace lathe::train {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// log of the mass outside `tokens`: [n]. Summed there, since 1 minus the mass inside would cancel.
at::Tensor log_outside(const at::Tensor& log_p, const at::Tensor& tokens) {
  return at::logsumexp(log_p.scatter(1, tokens, kMinusInfinity), 1);
}

}  // namespace

ReferenceDistributions take_references(const model::Model& model, const GradedRows& graded, const at::Tensor& x,
                                       int64_t k) {
  k = std::min(k, model.config().vocab_size);
  ReferenceDistributions out{.tokens = at::empty({graded.size(), k}, at::kInt),
                             .log_q = at::empty({graded.size(), k}, at::kFloat),
                             .log_rest = at::empty({graded.size()}, at::kFloat)};
  visit_distributions(model, graded, x, 1, [&](const RowRange& range, const at::Tensor& log_p) {
    const auto [values, tokens] = at::topk(log_p, k, 1);
    range.of(out.tokens).copy_(tokens);
    range.of(out.log_q).copy_(values);
    range.of(out.log_rest).copy_(log_outside(log_p, tokens));
  });
  return out;
}

std::vector<ReferenceDistributions> split(const ReferenceDistributions& references, const GradedRows& graded,
                                          int64_t examples) {
  std::vector<ReferenceDistributions> out;
  const at::Tensor counts = at::bincount(graded.sequences, {}, examples);
  int64_t begin = 0;
  for (int64_t i = 0; i < examples; ++i) {
    const int64_t count = counts[i].item<int64_t>();
    // Copies: views would keep the whole batch alive.
    out.push_back({references.tokens.narrow(0, begin, count).clone(), references.log_q.narrow(0, begin, count).clone(),
                   references.log_rest.narrow(0, begin, count).clone()});
    begin += count;
  }
  return out;
}

ReferenceDistributions join(std::span<const ReferenceDistributions> references) {
  std::vector<at::Tensor> tokens, log_q, log_rest;
  for (const ReferenceDistributions& one : references) {
    tokens.push_back(one.tokens);
    log_q.push_back(one.log_q);
    log_rest.push_back(one.log_rest);
  }
  return {at::cat(tokens), at::cat(log_q), at::cat(log_rest)};
}

WithKl::WithKl(const Objective& base, double coefficient, ReferenceDistributions references)
    : base_(base), coefficient_(coefficient), references_(std::move(references)) {}

double WithKl::distribution_terms(const RowRange& range, const at::Tensor& log_p, at::Tensor* dlogits) const {
  LATHE_CHECK(references_.tokens.size(0) == range.graded.size());
  const auto device = log_p.device();
  const at::Tensor tokens = range.of(references_.tokens).to(device, at::kLong);
  const at::Tensor log_q = range.of(references_.log_q).to(device);
  const at::Tensor log_q_rest = range.of(references_.log_rest).to(device);
  const at::Tensor weights = (range.of(range.graded.weights) * (coefficient_ * range.scale)).to(device);
  const at::Tensor q = log_q.exp();

  // Where k is the vocabulary nothing is outside: log(q_rest / p_rest) is then taken as log 0.
  const at::Tensor log_ratio = at::where(log_q_rest.isneginf(), log_q_rest, log_q_rest - log_outside(log_p, tokens));
  const at::Tensor rest = at::where(log_q_rest.isneginf(), at::zeros_like(log_ratio), log_q_rest.exp() * log_ratio);
  const at::Tensor kl = (q * (log_q - log_p.gather(1, tokens))).sum(1) + rest;
  double loss = (kl * weights).sum(at::kDouble).item<double>();
  if (dlogits) {
    at::Tensor target = at::exp(log_p + log_ratio.unsqueeze(1)).scatter_(1, tokens, q);
    dlogits->addcmul_(at::exp(log_p).sub_(target), weights.unsqueeze(1));
  }
  if (base_.sees_distributions()) loss += base_.distribution_terms(range, log_p, dlogits);
  return loss;
}

}  // namespace lathe::train
