// Supervised fine-tuning: the weighted mean of -log p(target) over graded tokens. Token-weighted over the whole step,
// as transformers does with num_items_in_batch: a long answer counts as many tokens.
//
// Threads: a value.
#pragma once

#include "train/objective.h"

namespace lathe::train {

class Supervised final : public Objective {
 public:
  double size(const GradedRows& graded) const override;
  RowTerms row_terms(const RowRange& range, const at::Tensor& log_p) const override;
};

inline const Supervised kSupervised;

}  // namespace lathe::train
