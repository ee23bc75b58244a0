#include "weights/gradient.h"

#include <ATen/ATen.h>

namespace lathe::weights {

void GradientSet::vector(const Parameter& vector, at::Tensor gradient) {
  at::Tensor& sum = vectors[vector.id];
  sum = sum.defined() ? sum + gradient : std::move(gradient);
}

}  // namespace lathe::weights
