// Moments: what the optimizer remembers of one tensor between updates, and Adam's corrections of it.
//
// Threads: values; the tensors are shared handles.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/adam.h"
#include "optim/config.h"

namespace lathe::optim {

// Undefined tensors mean that no update was committed yet.
struct Moments {
  at::Tensor m, v;      // of APOLLO: of the projected gradient; else of the gradient. fp32
  int64_t updates = 0;  // of this tensor
  double norm = 0;      // APOLLO: ‖U‖ of the last update, limited
  at::Tensor p;         // APOLLO: the projection until its next refresh; regenerated, never saved
};

// 1 / (1 - β^t) of both moments.
struct BiasCorrection {
  double first, second;
};
BiasCorrection bias_correction(const OptimizerConfig& config, int64_t updates);

// Of a tensor's next update, the `updates`-th, under plain Adam.
kernels::AdamCoefficients adam_coefficients(const OptimizerConfig& config, int64_t updates);

}  // namespace lathe::optim
