#include "train/supervised.h"

#include <ATen/ATen.h>

namespace lathe::train {

double Supervised::size(const GradedRows& graded) const {
  return graded.weights.sum(at::kDouble).item<double>();
}

RowTerms Supervised::row_terms(const RowRange& range, const at::Tensor& log_p) const {
  const at::Tensor slopes = range.of(range.graded.weights) * -range.scale;
  return {(log_p * slopes).sum(at::kDouble).item<double>(), slopes};
}

}  // namespace lathe::train
