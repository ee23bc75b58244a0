// Optimizer: turns a step's gradients into a proposal, and a proposal into changed weights.
//
// Methods: apollo_mini (default) and apollo (Zhu et al., arXiv 2412.05270), adamw and sgd as controls. Matrices are handled
//          part by part (checkpoint tensors), from factors: no dense gradient of a weight's size exists at any time. 1-D
//          parameters use AdamW in fp32 with every method.
// Threads: one.
// Memory:  apollo_mini keeps 2 (rows or columns) fp32 numbers per matrix, adamw 8 bytes per weight. A Proposal keeps the
//          gradient factors alive until it is committed or dropped; dropping it changes nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kernels/rounding.h"
#include "weights/gradient.h"
#include "weights/weight_store.h"

namespace lathe::optim {

enum class Method { kApolloMini, kApollo, kAdamW, kSgd };

// "apollo_mini", "apollo", "adamw", "sgd".
Result<Method> parse_method(std::string_view name);
std::string_view method_name(Method method);

struct OptimizerConfig {
  Method method = Method::kApolloMini;
  int64_t rank = 128;  // of apollo; apollo_mini has rank 1; never more than the smaller side of a matrix
  int64_t refresh_every = 200;  // updates between new random projections
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;     // decoupled, matrices only
  double growth_limit = 1.01;  // an update's norm may grow by this factor per step; 0 switches the limiter off
  bool train_embeddings = true;  // embedding and head
  kernels::Rounding rounding = kernels::Rounding::kStochastic;
  uint32_t seed = 1;

  Status validate() const;  // names the field and its range
};

// What a commit did to one tensor.
struct TensorReport {
  std::string_view name;     // of the part; lives as long as the WeightStore
  double gradient_norm = 0;  // Frobenius
  double update_norm = 0;    // of what is multiplied by the learning rate, after the limiter
  double limiter = 1;        // how much the limiter divided by
  kernels::UpdateStats stats;
};

struct CommitReport {
  kernels::UpdateStats total;
  double gradient_norm = 0;  // over all tensors
  std::vector<TensorReport> tensors;
};

struct ProposalData;

// An update computed and not yet applied. Move-only; dropping it is free of consequences.
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
  // `store` outlives the optimizer. config.validate() must hold.
  Optimizer(const weights::WeightStore& store, OptimizerConfig config);
  ~Optimizer();

  // Reads gradients and state; changes neither weights nor state. A tensor without gradient, or with one of zeros, is left
  // out and keeps its state. A gradient that is not finite refuses the whole step, naming the tensor.
  Result<Proposal> propose(weights::GradientSet gradients, double learning_rate) const;

  // Changes the weights in place and moves the state on. The caller holds the Gate alone.
  CommitReport commit(Proposal proposal);

  const OptimizerConfig& config() const { return config_; }
  int64_t updates() const { return updates_; }  // commits so far
  int64_t state_bytes() const;

 private:
  struct State;
  const weights::WeightStore& store_;
  OptimizerConfig config_;
  int64_t updates_ = 0;
  std::unique_ptr<State> state_;
};

}  // namespace lathe::optim
