// Trainer: examples in, a proposal out, a commit into the live weights. src/train/step.cpp is the algorithm.
//
// Threads: one (the teaching thread). propose() and evaluate() read the weights, which nobody else writes; commit()
// takes the Gate exclusively for as long as it takes to read and write the weights once.
// Memory: besides the weights: K/V of the examples' contexts, the live rows' input of every layer, the gradients as the
// path keeps them, and the optimizer's state.
#pragma once

#include <optional>
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

struct Batch;
struct PassLimits;

// How gradients travel from the backward pass into the weights. All three lead to the same update, but for rounding.
enum class GradientPath {
  // As factors, to a proposal that is committed in one short pause. Memory grows with the graded tokens: for each,
  // 2 bytes per row and column of all matrices.
  kFactored,
  // Each layer is written as soon as its backward pass has ended; its gradients are then dropped. For so many tokens
  // that factors would take more memory than the weights. There is no proposal; the pause is as long as the backward
  // pass.
  kStreaming,
  // As dense matrices in fp32, 4 bytes per weight: the oracle of the other two.
  kDense,
};

struct StepOptions {
  double learning_rate = 1e-5;
  data::ContextMode context = data::ContextMode::kFrozen;
  int64_t chunk_rows = 0;  // rows per forward pass; 0: 1,024 on a CPU, 16,384 on a GPU, enough to keep it busy
  // PassLimits::kept_bytes (backward.h); by default 512 MiB on a CPU, where recomputing a layer is expensive, and 0 on
  // a GPU, where memory is scarce.
  std::optional<int64_t> kept_bytes;
  GradientPath gradients = GradientPath::kFactored;
  // kStreaming only: hold the Gate for each layer's write instead of the whole backward pass. Requests continue
  // meanwhile, through a model of which some layers are updated and some are not yet.
  bool live = false;
};

// With defaults filled in for weights on `device`.
PassLimits pass_limits(const StepOptions& options, c10::Device device);

// What one forward and backward pass takes. An objective may know more about these very examples (dpo.h, kl.h).
struct MicroBatch {
  std::span<const data::Example> examples;
  const Objective* objective = &kSupervised;
};
// Supervised micro-batches of `size` examples, in order.
std::vector<MicroBatch> micro_batches(std::span<const data::Example> examples, size_t size);

struct StepProposal {
  double loss = 0;  // the objective's mean, before the update
  int64_t graded_tokens = 0;
  int64_t tokens = 0;
  optim::Proposal update;
};

struct StepReport {
  double loss = 0;  // as in StepProposal
  int64_t graded_tokens = 0;
  int64_t tokens = 0;
  optim::CommitReport commit;
  double pause_seconds = 0;  // how long the weights were held exclusively, waiting for readers included; of a live
                             // step, the longest time at once
  // kStreaming: why the step ended half-way. The tensors in `commit` were changed and stay changed, the others were
  // not: the weights are a new version, of finite numbers.
  std::optional<Error> stopped;
};

class Trainer {
 public:
  Trainer(const model::Model& model, const weights::WeightStore& store, weights::Gate& gate,
          optim::OptimizerConfig optimizer);

  // Forward, loss, backward, scales. Touches no weight and no optimizer state. A non-finite loss or gradient is an
  // error that names it. Invalid examples are refused first, and so is kStreaming, which has no proposal.
  // Several micro-batches give the update of all their examples at once: sums are divided by the sizes of all.
  Result<StepProposal> propose(std::span<const MicroBatch> batches, const StepOptions& options);
  Result<StepProposal> propose(std::span<const data::Example> examples, const StepOptions& options,
                               const Objective& objective = kSupervised);

  Result<StepReport> commit(StepProposal proposal);

  // A whole step, by any path. An error means that nothing has changed. kStreaming takes one micro-batch; the loss is
  // checked before the first write; a gradient that turns out not to be finite later ends the step and is reported
  // (StepReport::stopped).
  Result<StepReport> step(std::span<const MicroBatch> batches, const StepOptions& options);
  Result<StepReport> step(std::span<const data::Example> examples, const StepOptions& options,
                          const Objective& objective = kSupervised);

  // The objective's loss with the present weights, and what its mean is over (Objective::size).
  struct MeanLoss {
    double loss = 0;
    double size = 0;
  };
  Result<MeanLoss> evaluate(std::span<const data::Example> examples, const StepOptions& options,
                            const Objective& objective = kSupervised) const;

  // Of each example, with the present weights, for Dpo and WithKl: log pi, and distributions of its graded rows as
  // their `k` most probable tokens and the rest.
  Result<std::vector<double>> answer_log_probabilities(std::span<const data::Example> examples,
                                                       const StepOptions& options) const;
  Result<std::vector<ReferenceDistributions>> take_references(std::span<const data::Example> examples, int64_t k,
                                                              const StepOptions& options) const;

  optim::Optimizer& optimizer() { return optimizer_; }

 private:
  Result<StepReport> stream(const Batch& batch, const Objective& objective, const StepOptions& options);

  const model::Model& model_;
  const weights::WeightStore& store_;
  weights::Gate& gate_;
  optim::Optimizer optimizer_;
};

}  // namespace lathe::train
