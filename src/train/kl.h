// KL to a stored reference, as a regulariser: keeps the model's next-token distributions near those it had, while the
// objective proper moves what it must.
//
// Per graded row the reference is stored as its k most probable tokens K with their log q, and the remaining mass
// q_rest. The divergence is that of these k + 1 events,
//
//   KL = sum over K of q (log q - log p) + q_rest (log q_rest - log p_rest),   p_rest = sum of p outside K
//
// never more than the KL of the whole distributions, and equal to it where k is the vocabulary. Its gradient with
// respect to the logits is exact: p - q on K, and outside K p - q_rest p / p_rest; at the reference it is zero.
//
// Memory: 8 k + 4 bytes per graded row.
// Threads: values.
#pragma once

#include <span>
#include <vector>

#include "model/model.h"
#include "train/objective.h"

namespace lathe::train {

// Of r graded rows. On the CPU.
struct ReferenceDistributions {
  at::Tensor tokens;    // [r, k] int32
  at::Tensor log_q;     // [r, k] fp32
  at::Tensor log_rest;  // [r] fp32; -inf where k is the vocabulary
};

// With the present weights, at every graded row of a batch; x as in loss.h. 1 <= k; beyond the vocabulary: all of it.
ReferenceDistributions take_references(const model::Model& model, const GradedRows& graded, const at::Tensor& x,
                                       int64_t k);

// References of one batch to those of each of its examples, and back.
std::vector<ReferenceDistributions> split(const ReferenceDistributions& references, const GradedRows& graded,
                                          int64_t examples);
ReferenceDistributions join(std::span<const ReferenceDistributions> references);

// base + coefficient * sum of weight * KL over graded rows, in the units of `base`: with Supervised, the weighted mean.
class WithKl final : public Objective {
 public:
  // `base` outlives this. `references` are of the batch's graded rows, in their order.
  WithKl(const Objective& base, double coefficient, ReferenceDistributions references);

  double size(const GradedRows& graded) const override { return base_.size(graded); }
  bool couples_rows() const override { return base_.couples_rows(); }
  RowTerms row_terms(const RowRange& range, const at::Tensor& log_p) const override {
    return base_.row_terms(range, log_p);
  }
  bool sees_distributions() const override { return true; }
  double distribution_terms(const RowRange& range, const at::Tensor& log_p, at::Tensor* dlogits) const override;

 private:
  const Objective& base_;
  double coefficient_;
  ReferenceDistributions references_;
};

}  // namespace lathe::train
