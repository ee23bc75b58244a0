// Direct preference optimisation (Rafailov et al., arXiv 2305.18290, equation 7): of two answers to one prompt, chosen
// c and rejected r,
//
//   loss = -log sigmoid(beta ((log pi(c) - log ref(c)) - (log pi(r) - log ref(r))))
//
// log pi(answer): weighted sum of log p over its graded tokens. The reference is the model as it was when the pair
// arrived, and of it only two numbers are needed, so no second model is kept. The step's loss is the mean over pairs.
//
// Threads: a value.
#pragma once

#include <vector>

#include "train/objective.h"

namespace lathe::train {

class Dpo final : public Objective {
 public:
  // Of a batch whose examples 2i and 2i + 1 are the chosen and the rejected answer of pair i. `reference` holds
  // log ref of each example (answer_log_probabilities, taken with the reference's weights).
  Dpo(double beta, std::vector<double> reference);

  double size(const GradedRows& graded) const override;
  bool couples_rows() const override { return true; }
  RowTerms row_terms(const RowRange& range, const at::Tensor& log_p) const override;

 private:
  double beta_;
  std::vector<double> reference_;
};

// log pi of each of the batch's `examples` examples from log p of all its graded rows: [examples] fp64.
at::Tensor answer_log_probabilities(const GradedRows& graded, const at::Tensor& log_p, int64_t examples);

}  // namespace lathe::train
