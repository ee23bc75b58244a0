// The options of `lathe train`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "train/run.h"

namespace CLI {
class App;
}

namespace lathe::cli {

struct TrainOptions {
  std::string directory, data;
  std::string evaluation;  // a file of its own, or:
  double evaluation_fraction = 0;
  std::string device = "auto";
  bool resume = false, restart = false, keep_optimizer = false;
  bool quiet = false, verbose = false, json = false, dry_run = false;
  std::string report;  // a directory; none: empty

  // As typed; settings() makes them the run's.
  std::string method = "sft", optimizer = "apollo_mini", schedule = "constant", rounding = "stochastic";
  std::string context = "frozen", gradients = "factored";
  bool freeze_embeddings = false;
  std::optional<int64_t> rank;
  std::optional<double> scale;
  train::RunSettings run;

  Result<train::RunSettings> settings() const;
};

// Options and their help; what they can refuse by themselves is a usage error (exit code 2).
void add_train_options(CLI::App& app, TrainOptions& options);

}  // namespace lathe::cli
