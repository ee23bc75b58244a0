// Objective: what a training step minimises, stated on the graded rows' log-probabilities.
//
// The head is walked a slice of rows at a time (loss.h), so an objective never sees logits as a whole. It answers, for
// a range of rows, with its loss and with d loss / d log p(target) of each row; the walk turns that into the gradient
// of the logits: d log p(t) / d z = onehot(t) - p. An objective over whole distributions adds its own term per slice.
// A new loss is one class: supervised.h is the shortest, dpo.h couples rows, kl.h sees distributions.
//
// Threads: immutable during a step, any thread.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "train/batch.h"

namespace lathe::train {

// The graded rows of a batch, ordered by sequence, then position; r of them. Their order does not depend on the context
// mode. On the CPU.
struct GradedRows {
  at::Tensor rows;       // [r] int64: which live row
  at::Tensor targets;    // [r] int64: the token it predicts
  at::Tensor weights;    // [r] fp32, positive
  at::Tensor sequences;  // [r] int64: which example of the batch
  int64_t size() const { return rows.size(0); }
};
GradedRows graded_rows(const Batch& batch);

// Graded rows [begin, begin + count). Losses are sums over rows times `scale`.
struct RowRange {
  const GradedRows& graded;
  int64_t begin = 0;
  int64_t count = 0;
  double scale = 1;

  at::Tensor of(const at::Tensor& per_row) const { return per_row.narrow(0, begin, count); }
};

struct RowTerms {
  double loss = 0;
  at::Tensor slopes;  // [count] fp32, CPU: d loss / d log p(target)
};

class Objective {
 public:
  virtual ~Objective() = default;

  // What the sums over this batch are to be divided by for a mean: graded weight, pairs. A step of several batches
  // divides by the sum of their sizes, so that it equals the step on all of them at once.
  virtual double size(const GradedRows& graded) const = 0;

  // Terms of log p(target), [count] fp32 on the CPU.
  virtual RowTerms row_terms(const RowRange& range, const at::Tensor& log_p) const = 0;

  // Whether a row's slope depends on other rows. Then row_terms() is asked once, about all rows, after a first walk
  // over the head; otherwise slice by slice in the only walk.
  virtual bool couples_rows() const { return false; }

  // Whether distribution_terms() has anything to say.
  virtual bool sees_distributions() const { return false; }
  // Terms of whole distributions: returns their loss and, if `dlogits` is not null, adds their gradient with respect to
  // the logits to it. log_p, dlogits: [count, V] fp32 on the model's device.
  virtual double distribution_terms(const RowRange& /*range*/, const at::Tensor& /*log_p*/,
                                    at::Tensor* /*dlogits*/) const {
    return 0;
  }
};

}  // namespace lathe::train
