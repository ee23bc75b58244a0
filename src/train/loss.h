// The language-model head and the loss of graded rows, a slice of rows at a time: fp32 logits of all rows would need
// rows x vocabulary x 4 bytes.
//
// x is [n, D], the last layer's output of a batch's live rows. Log-probabilities are fp32, from logits in the compute
// dtype, as transformers computes its loss. Losses are the objective's sums divided by `divisor`
// (Objective::size of the whole step).
// Memory: whatever the number of rows, a few slices of at most 32 MiB, or one of 64 (on a GPU 320) that is worked on
// in place; and what `sink` keeps.
// Threads: any; the caller is the only writer of the weights. Exceptions of torch come through.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "model/model.h"
#include "train/objective.h"
#include "weights/gradient.h"

namespace lathe::train {

// Graded rows that are walked at once, outside a GPU's own kernels.
int64_t slice_rows(const model::ModelConfig& config);

// log p(target) of every graded row: [r] fp32, CPU.
at::Tensor target_log_probabilities(const model::Model& model, const GradedRows& graded, const at::Tensor& x);

// Calls visit(range, log_p [count, V] fp32) for consecutive ranges that make up all graded rows.
using DistributionVisitor = std::function<void(const RowRange& range, const at::Tensor& log_p)>;
void visit_distributions(const model::Model& model, const GradedRows& graded, const at::Tensor& x, double scale,
                         const DistributionVisitor& visit);

double loss_value(const model::Model& model, const GradedRows& graded, const at::Tensor& x, const Objective& objective,
                  double divisor);

struct LossGradient {
  double loss = 0;
  at::Tensor dx;  // [n, D]: gradient of the loss with respect to x
};

// The same, with its gradient; the gradients of head and final norm go to `sink`.
LossGradient loss_gradient(const model::Model& model, const GradedRows& graded, const at::Tensor& x,
                           const Objective& objective, double divisor, weights::GradientSink& sink);

}  // namespace lathe::train
