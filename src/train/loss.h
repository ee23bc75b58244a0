// The language-model head and the cross entropy of graded rows, a slice of rows at a time: fp32 logits of all rows
// would need rows x vocabulary x 4 bytes.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/model.h"
#include "train/batch.h"
#include "weights/gradient.h"

namespace lathe::train {

// Weighted mean of -log p(target) over the rows of x [n, D], the last layer's output of the live rows;
// log-probabilities in fp32 from logits in the compute dtype, as transformers computes its loss.
double mean_loss(const model::Model& model, const Batch& batch, const at::Tensor& x);

struct LossGradient {
  double loss = 0;
  at::Tensor dx;  // [n, D]: gradient of the loss with respect to x
};

// The same, with its gradient; the gradients of head and final norm go to `sink`.
LossGradient loss_gradient(const model::Model& model, const Batch& batch, const at::Tensor& x,
                           weights::GradientSink& sink);

}  // namespace lathe::train
