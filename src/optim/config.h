// OptimizerConfig: everything that decides what an update is.
//
// Threads: values.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/result.h"
#include "kernels/rounding.h"

namespace lathe::optim {

enum class Method { kApolloMini, kApollo, kAdamW, kSgd };

// "apollo_mini", "apollo", "adamw", "sgd".
Result<Method> parse_method(std::string_view name);
std::string_view method_name(Method method);

// "stochastic", "nearest", "shadow" (kernels/rounding.h).
Result<kernels::Rounding> parse_rounding(std::string_view name);

struct OptimizerConfig {
  Method method = Method::kApolloMini;
  // Of APOLLO's projection; by default 1 for apollo_mini and 128 for apollo. Never more than the smaller side of a
  // matrix.
  std::optional<int64_t> rank;
  int64_t refresh_every = 200;  // updates between new random projections
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;  // decoupled, matrices only
  // The square of APOLLO's factor α, as its authors give it. By default m / r (m the smaller side of the matrix, r the
  // rank): then the root mean square of an update is that of AdamW's, and a learning rate means what it means there.
  std::optional<double> scale;
  double growth_limit = 1.01;    // an update's norm may grow by this factor per step; 0 switches the limiter off
  bool train_embeddings = true;  // embedding and head
  kernels::Rounding rounding = kernels::Rounding::kStochastic;
  uint32_t seed = 1;
  // Follows the trajectories of the authors' package (docs/research/apollo.md): projections from torch's CPU generator,
  // part id + `seed` as their first seed; ε added to the uncorrected root; the limiter before bias correction; decay
  // last, also of 1-D tensors. For comparison only: its first steps on a repeated example are about half as long as
  // they should be.
  bool official_compat = false;
  // Of a commit, so that a tile stays in a core's cache; results do not depend on it.
  int64_t tile_elements = int64_t{256} * 1024;

  int64_t projection_rank() const { return rank.value_or(method == Method::kApollo ? 128 : 1); }
  bool apollo() const { return method == Method::kApolloMini || method == Method::kApollo; }
  Status validate() const;  // names the field and its range
};

}  // namespace lathe::optim
