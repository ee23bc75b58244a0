// Optimizer: turns a step's gradients into a proposal, and a proposal into changed weights; or streams them into the
// weights while the backward pass still runs.
//
// Methods: apollo_mini (default) and apollo (Zhu et al., arXiv 2412.05270); adamw and sgd for comparison. Matrices are
// handled part by part (checkpoint tensors). Embeddings and heads are scaled as a whole, by apollo too. 1-D parameters
// use AdamW in fp32 with every method except sgd. A gradient may come as factors or dense, at once or streamed: the
// arithmetic is the same.
// Threads: one.
// Memory: apollo_mini keeps 2 (rows or columns) fp32 numbers per matrix, adamw 8 bytes per weight. APOLLO also keeps its
// projections, rank x (the smaller side) numbers each, until the next refresh; shadow rounding 4 bytes per bf16 weight.
// A Proposal keeps the gradients alive until it is committed or dropped; dropping it changes nothing. From factors
// nothing of a weight's size is allocated; a StreamedUpdate keeps one buffer of the largest part's size.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kernels/rounding.h"
#include "optim/config.h"
#include "optim/moments.h"
#include "weights/gradient.h"
#include "weights/weight_store.h"

namespace lathe::optim {

// What a commit did to one tensor.
struct TensorReport {
  std::string_view name;     // of the part; lives as long as the WeightStore
  double gradient_norm = 0;  // Frobenius
  double update_norm = 0;    // of the intended change, decay included, over the learning rate
  double limiter = 1;        // how much the limiter divided by
  kernels::UpdateStats stats;
};

struct CommitReport {
  kernels::UpdateStats total;
  double gradient_norm = 0;           // over all tensors
  std::vector<TensorReport> tensors;  // those with a gradient

  void operator+=(CommitReport other);
};

// Everything except the weights that must survive a restart. The tensors are handles to live state: encode or copy them
// before the next commit.
struct OptimizerState {
  std::map<std::string, std::string> settings;  // what the state depends on
  // TENSOR.m, .v fp32; TENSOR.updates int64 [1], .norm fp64 [1]; TENSOR.shadow fp32
  std::map<std::string, at::Tensor> tensors;
};

struct ProposalData;
struct PendingSteps;
struct ParameterGradient;

// An update computed and not yet applied. Move-only; dropping it has no effect.
class Proposal {
 public:
  Proposal();
  ~Proposal();
  Proposal(Proposal&&) noexcept;
  Proposal& operator=(Proposal&&) noexcept;

 private:
  friend class Optimizer;
  explicit Proposal(std::unique_ptr<ProposalData> data);
  std::unique_ptr<ProposalData> data_;
};

class Optimizer {
 public:
  // Whether these weights can be trained so: config.validate(), and that shadow rounding finds weights that need it and
  // a device that has it.
  static Status check(const weights::WeightStore& store, const OptimizerConfig& config);

  // `store` outlives the optimizer. Without check() every update is refused with its error.
  Optimizer(const weights::WeightStore& store, OptimizerConfig config);

  // Reads gradients and state; changes neither weights nor state. A tensor without gradient, or with one of zeros, is
  // left out and keeps its state. A gradient that is not finite refuses the whole step, naming the tensor.
  Result<Proposal> propose(weights::GradientSet gradients, double learning_rate) const;

  // Changes the weights in place and updates the state. The caller holds the Gate exclusively. The proposal must be of
  // this optimizer, and no other may have been committed since it was made.
  CommitReport commit(Proposal proposal);

  OptimizerState state() const;
  // Continues, to the same bits, where state() was taken. Refuses by name, changing nothing: another method, rank,
  // refresh, seed or compatibility; a tensor that the model does not have or has with another shape; numbers that are
  // not finite. Rates, betas, decay, limiter and rounding may differ: they are free to change between steps. Shadows
  // that this run's rounding has no use for are dropped.
  Status restore(const OptimizerState& state);

  const OptimizerConfig& config() const { return config_; }
  int64_t updates() const { return updates_; }  // commits so far
  int64_t state_bytes() const;                  // of state()'s tensors
  // What this object will hold when every tensor has been updated: moments, shadows and projections.
  int64_t full_bytes() const;

 private:
  friend class StreamedUpdate;

  std::map<std::string, std::string> settings() const;
  // Measures one part's gradient. With `buffer` a gradient that is needed twice may be formed there.
  void measure(const weights::Parameter& parameter, const weights::Part& part, const ParameterGradient& gradient,
               at::Tensor* buffer, PendingSteps& pending) const;
  // What is to become of all that was measured; parts with a gradient of zero are left out.
  Status settle(PendingSteps pending, ProposalData& data) const;
  CommitReport write(const ProposalData& data, int64_t update);

  const weights::WeightStore& store_;
  OptimizerConfig config_;
  int64_t updates_ = 0;
  std::vector<Moments> moments_;     // by part id
  std::vector<at::Tensor> shadows_;  // by part id: fp32, once updated, of bf16 parts under shadow rounding
};

// One update, written piece by piece as gradients become complete: for so many tokens that factors of the whole model
// would take more memory than the weights. The caller holds the Gate exclusively during apply().
//
// What is promised: every tensor is checked before it is written, so weights and state are always finite, and each
// tensor is entirely before or entirely after the update. What is not: the pieces together are not atomic. When
// apply() fails, what earlier calls wrote, and earlier tensors of the same call, stay; they are listed in report().
class StreamedUpdate {
 public:
  // The optimizer outlives this, and does nothing else meanwhile.
  StreamedUpdate(Optimizer& optimizer, double learning_rate) : optimizer_(optimizer), learning_rate_(learning_rate) {}

  // A parameter comes once, with all of its gradient. Fails, naming the tensor, at the first one that is not finite.
  Status apply(weights::GradientSet gradients);

  const CommitReport& report() const { return report_; }

 private:
  void write(const ProposalData& data);

  Optimizer& optimizer_;
  double learning_rate_;
  std::optional<int64_t> update_;  // its number, once it counts
  at::Tensor buffer_;              // a part's gradient, one after the other
  CommitReport report_;
};

}  // namespace lathe::optim
