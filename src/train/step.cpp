// One step of teaching, top to bottom:
//
//   examples -> packed rows, live rows among them            batch.h
//   context and live rows forward, no gradient               batch.h: K/V kept, layer inputs of live rows kept
//   loss of the graded rows, a slice at a time               loss.h, objective.h
//   backward, layer by layer, last to first                  backward.h: recompute one layer, autograd inside it only
//   gradients as factors (X, dY)                             weights/gradient.h
//   proposal: scales, norms, checks                          optim/optimizer.h
//   commit: the gate held alone, weights changed in place
#include <ATen/ATen.h>

#include <chrono>
#include <cmath>

#include "train/backward.h"
#include "train/batch.h"
#include "train/guarded.h"
#include "train/loss.h"
#include "train/trainer.h"

namespace lathe::train {

Trainer::Trainer(const model::Model& model, const weights::WeightStore& store, weights::Gate& gate,
                 optim::OptimizerConfig optimizer)
    : model_(model), store_(store), gate_(gate), optimizer_(store, optimizer) {}

Result<StepProposal> Trainer::propose(std::span<const data::Example> examples, const StepOptions& options,
                                      const Objective& objective) {
  LATHE_TRY(data::validate(examples, model_.config().vocab_size, model_.config().max_positions));
  return guarded("the training step", [&]() -> Result<StepProposal> {
    const Batch batch = pack(examples, options.context);
    weights::GradientSet gradients(store_.parameters().size());
    StepProposal proposal{.tokens = batch.total_rows};
    proposal.loss = backward(model_, batch, options.chunk_rows, gradients, objective);
    if (!std::isfinite(proposal.loss)) return invalid_argument("the loss is not finite; the update was dropped");
    proposal.graded_tokens = batch.weights.count_nonzero().item<int64_t>();
    proposal.update = LATHE_TRY(optimizer_.propose(std::move(gradients), options.learning_rate));
    return proposal;
  });
}

Result<StepReport> Trainer::commit(StepProposal proposal) {
  return guarded("the commit", [&]() -> Result<StepReport> {
    StepReport report;
    const auto begin = std::chrono::steady_clock::now();
    const weights::Gate::Exclusive alone(gate_);
    report.commit = optimizer_.commit(std::move(proposal.update));
    report.pause_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return report;
  });
}

Result<Trainer::Evaluation> Trainer::evaluate(std::span<const data::Example> examples, const StepOptions& options,
                                              const Objective& objective) const {
  LATHE_TRY(data::validate(examples, model_.config().vocab_size, model_.config().max_positions));
  return guarded("the evaluation", [&]() -> Result<Evaluation> {
    const Batch batch = pack(examples, options.context);
    const LiveForward live = forward_live(model_, batch, options.chunk_rows, /*keep_layers=*/false);
    const GradedRows graded = graded_rows(batch);
    const double size = objective.size(graded);
    return Evaluation{loss_value(model_, graded, live.inputs.back(), objective, size), size};
  });
}

}  // namespace lathe::train
