// The backward pass of one batch: loss and every gradient. The part of a step that knows nothing of optimizers.
//
// Threads: the caller is the only writer of the weights. Exceptions of torch come through; Trainer turns them into
// errors.
#pragma once

#include <optional>

#include "model/model.h"
#include "train/batch.h"
#include "train/supervised.h"
#include "weights/gradient.h"

namespace lathe::train {

// The objective's loss over the batch, divided by `divisor` (by default its size of this batch); all gradients go to
// `sink`, one layer at a time, last to first. If the loss is not finite, nothing further is computed. Forward passes
// take at most `chunk_rows` rows at once.
double backward(const model::Model& model, const Batch& batch, int64_t chunk_rows, weights::GradientSink& sink,
                const Objective& objective = kSupervised, std::optional<double> divisor = {});

}  // namespace lathe::train
