// Trainer: examples in, a proposal out, a commit into the live weights. src/train/step.cpp is the algorithm.
//
// Threads: one (the teaching thread). propose() and evaluate() read the weights, which nobody else writes; commit()
// takes the Gate exclusively for as long as it takes to read and write the weights once.
// Memory: besides the weights: K/V of the examples' contexts, the live rows' input of every layer, the gradient
// factors, and the optimizer's state.
#pragma once

#include <span>
#include <vector>

#include "base/result.h"
#include "data/example.h"
#include "model/model.h"
#include "optim/optimizer.h"
#include "train/kl.h"
#include "train/supervised.h"
#include "weights/gate.h"

namespace lathe::train {

struct StepOptions {
  double learning_rate = 1e-5;
  data::ContextMode context = data::ContextMode::kFrozen;
  int64_t chunk_rows = 1024;  // rows per forward pass over the contexts, and per slice of the loss
};

struct StepProposal {
  double loss = 0;  // the objective's mean, before the update
  int64_t graded_tokens = 0;
  int64_t tokens = 0;
  optim::Proposal update;
};

struct StepReport {
  optim::CommitReport commit;
  double pause_seconds = 0;  // how long the weights were held exclusively, waiting for readers included
};

class Trainer {
 public:
  Trainer(const model::Model& model, const weights::WeightStore& store, weights::Gate& gate,
          optim::OptimizerConfig optimizer);

  // Forward, loss, backward, scales. Touches no weight and no optimizer state. A non-finite loss or gradient is an
  // error that names it; invalid examples are refused before any work.
  Result<StepProposal> propose(std::span<const data::Example> examples, const StepOptions& options,
                               const Objective& objective = kSupervised);

  Result<StepReport> commit(StepProposal proposal);

  // The objective's loss with the present weights, and what its mean is over (Objective::size).
  struct Evaluation {
    double loss = 0;
    double size = 0;
  };
  Result<Evaluation> evaluate(std::span<const data::Example> examples, const StepOptions& options,
                              const Objective& objective = kSupervised) const;

  // Of each example, with the present weights, for Dpo and WithKl: log pi, and distributions of its graded rows as
  // their `k` most probable tokens and the rest.
  Result<std::vector<double>> answer_log_probabilities(std::span<const data::Example> examples,
                                                       const StepOptions& options) const;
  Result<std::vector<ReferenceDistributions>> take_references(std::span<const data::Example> examples, int64_t k,
                                                              const StepOptions& options) const;

  optim::Optimizer& optimizer() { return optimizer_; }

 private:
  const model::Model& model_;
  const weights::WeightStore& store_;
  weights::Gate& gate_;
  optim::Optimizer optimizer_;
};

}  // namespace lathe::train
