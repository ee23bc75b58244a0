// One step of teaching, top to bottom:
//
//   examples -> packed rows, live rows among them            batch.h
//   context and live rows forward                            batch.h: K/V kept, layer inputs of live rows kept
//   loss of the graded rows, a slice at a time               loss.h, objective.h
//   backward, layer by layer, last to first                  backward.h: autograd inside one layer only
//   gradients as factors (X, dY)                             weights/gradient.h; over all micro-batches
//   proposal: scales, norms, checks                          optim/optimizer.h
//   commit: the gate held exclusively, weights changed in place
//
// or, streamed: the gate is held exclusively from the loss on, with proposal and commit after each layer's backward
// pass.
#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "gpu/device.h"
#include "train/backward.h"
#include "train/batch.h"
#include "train/guarded.h"
#include "train/loss.h"
#include "train/trainer.h"

namespace lathe::train {
namespace {

struct Pass {
  Batch batch;
  const Objective& objective;
};

Result<std::vector<Pass>> pack_all(std::span<const MicroBatch> micro, const model::ModelConfig& config,
                                   data::ContextMode context) {
  if (micro.empty()) return invalid_argument("there is no example to learn from");
  for (const MicroBatch& one : micro) LATHE_TRY(data::validate(one.examples, config.vocab_size, config.max_positions));
  std::vector<Pass> passes;
  for (const MicroBatch& one : micro) passes.push_back({pack(one.examples, context), *one.objective});
  return passes;
}

// What all sums of a step are divided by.
double total_size(const std::vector<Pass>& passes) {
  double size = 0;
  for (const Pass& pass : passes) size += pass.objective.size(graded_rows(pass.batch));
  return size;
}

int64_t graded_tokens(const Batch& batch) {
  return batch.weights.count_nonzero().item<int64_t>();
}

const Error kLossNotFinite = internal("the loss is not finite; the update was dropped");

using Clock = std::chrono::steady_clock;

// Holds the Gate exclusively, and says how long that took, waiting included.
class Pause {
 public:
  Pause(weights::Gate& gate, c10::Device device) : alone_(gate), finished_(device) {}
  double seconds() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

 private:
  Clock::time_point begin_ = Clock::now();  // before the gate is taken
  weights::Gate::Exclusive alone_;
  gpu::Fence finished_;  // what was queued meanwhile is done before the gate opens
};

}  // namespace

Trainer::Trainer(const model::Model& model, const weights::WeightStore& store, weights::Gate& gate,
                 optim::OptimizerConfig optimizer)
    : model_(model), store_(store), gate_(gate), optimizer_(store, optimizer) {}

PassLimits pass_limits(const StepOptions& options, c10::Device device) {
  const bool cpu = device.is_cpu();
  return {.chunk_rows = options.chunk_rows > 0 ? options.chunk_rows : (cpu ? 1024 : 16384),
          .kept_bytes = options.kept_bytes.value_or(cpu ? int64_t{512} << 20 : 0)};
}

std::vector<MicroBatch> micro_batches(std::span<const data::Example> examples, size_t size) {
  std::vector<MicroBatch> batches;
  for (size_t begin = 0; begin < examples.size(); begin += size) {
    batches.push_back({examples.subspan(begin, std::min(size, examples.size() - begin))});
  }
  return batches;
}

Result<StepProposal> Trainer::propose(std::span<const data::Example> examples, const StepOptions& options,
                                      const Objective& objective) {
  const MicroBatch all{examples, &objective};
  return propose({&all, 1}, options);
}

Result<StepProposal> Trainer::propose(std::span<const MicroBatch> batches, const StepOptions& options) {
  if (options.gradients == GradientPath::kStreaming) {
    return invalid_argument("streamed gradients go straight into the weights: there is no proposal; take a whole step");
  }
  return guarded("the training step", [&]() -> Result<StepProposal> {
    const std::vector<Pass> passes = LATHE_TRY(pack_all(batches, model_.config(), options.context));
    const double size = total_size(passes);
    weights::GradientSet gradients(store_.parameters().size(), options.gradients == GradientPath::kDense
                                                                   ? weights::GradientForm::kDense
                                                                   : weights::GradientForm::kFactors);
    StepProposal proposal;
    for (const auto& [batch, objective] : passes) {
      proposal.loss +=
          backward(model_, batch, pass_limits(options, model_.options().device()), gradients, objective, size);
      if (!std::isfinite(proposal.loss)) return kLossNotFinite;
      proposal.graded_tokens += graded_tokens(batch);
      proposal.tokens += batch.total_rows;
    }
    proposal.update = LATHE_TRY(optimizer_.propose(std::move(gradients), options.learning_rate));
    return proposal;
  });
}

Result<StepReport> Trainer::commit(StepProposal proposal) {
  return guarded("the commit", [&]() -> Result<StepReport> {
    StepReport report{.loss = proposal.loss, .graded_tokens = proposal.graded_tokens, .tokens = proposal.tokens};
    const Pause pause(gate_, model_.options().device());
    report.commit = optimizer_.commit(std::move(proposal.update));
    report.pause_seconds = pause.seconds();
    return report;
  });
}

Result<StepReport> Trainer::step(std::span<const data::Example> examples, const StepOptions& options,
                                 const Objective& objective) {
  const MicroBatch all{examples, &objective};
  return step({&all, 1}, options);
}

Result<StepReport> Trainer::step(std::span<const MicroBatch> batches, const StepOptions& options) {
  if (options.gradients != GradientPath::kStreaming) {
    StepProposal proposal = LATHE_TRY(propose(batches, options));
    return commit(std::move(proposal));
  }
  if (batches.size() > 1) {
    return invalid_argument("streamed gradients are written once each: accumulate micro-batches as factors or dense");
  }
  return guarded("the training step", [&]() -> Result<StepReport> {
    const std::vector<Pass> passes = LATHE_TRY(pack_all(batches, model_.config(), options.context));
    return stream(passes.at(0).batch, passes.at(0).objective, options);
  });
}

Result<StepReport> Trainer::stream(const Batch& batch, const Objective& objective, const StepOptions& options) {
  using weights::GradientSet;
  const size_t parameters = store_.parameters().size();
  StepReport report{.graded_tokens = graded_tokens(batch), .tokens = batch.total_rows};
  BackwardPass pass(model_, batch, pass_limits(options, model_.options().device()));
  GradientSet ends(parameters, weights::GradientForm::kSmaller);  // head, final norm, embedding
  report.loss = pass.loss(objective, objective.size(graded_rows(batch)), ends);
  if (!std::isfinite(report.loss)) return kLossNotFinite;

  optim::StreamedUpdate update(optimizer_, options.learning_rate);
  std::optional<Pause> whole;
  if (!options.live) whole.emplace(gate_, model_.options().device());
  const auto write = [&](GradientSet gradients) -> Status {
    std::optional<Pause> own;
    if (options.live) own.emplace(gate_, model_.options().device());
    LATHE_TRY(update.apply(std::move(gradients)));
    report.pause_seconds = std::max(report.pause_seconds, (own ? own : whole)->seconds());
    return {};
  };
  const Status done = guarded("the training step", [&]() -> Status {
    if (!model_.config().tie_embeddings) LATHE_TRY(write(std::exchange(ends, GradientSet(parameters))));
    while (pass.layers_left() > 0) {
      GradientSet layer(parameters);
      pass.next_layer(layer);
      LATHE_TRY(write(std::move(layer)));
    }
    pass.embedding(ends);
    return write(std::move(ends));
  });
  report.commit = update.report();
  if (done.ok()) return report;
  if (report.commit.tensors.empty()) return done.error();
  report.stopped = done.error().at("the step ended half-way, with " + std::to_string(report.commit.tensors.size()) +
                                   " tensors updated");
  return report;
}

Result<Trainer::MeanLoss> Trainer::evaluate(std::span<const data::Example> examples, const StepOptions& options,
                                            const Objective& objective) const {
  LATHE_TRY(data::validate(examples, model_.config().vocab_size, model_.config().max_positions));
  return guarded("the evaluation", [&]() -> Result<MeanLoss> {
    const Batch batch = pack(examples, options.context);
    const LiveForward live =
        forward_live(model_, batch, pass_limits(options, model_.options().device()).chunk_rows, /*keep_layers=*/false);
    const GradedRows graded = graded_rows(batch);
    const double size = objective.size(graded);
    return MeanLoss{loss_value(model_, graded, live.inputs.back(), objective, size), size};
  });
}

}  // namespace lathe::train
