// Dataset: tokenised examples, what their objective must know from before the first step, and micro-batches of them.
//
// Threads: one.
// Memory: the examples; of a DPO pair two numbers; with KL 8 k + 4 bytes per graded token (kl.h).
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "data/example.h"
#include "train/kl.h"
#include "train/objective.h"
#include "train/trainer.h"

namespace lathe::train {

struct ObjectiveSettings {
  bool preferences = false;  // DPO on pairs instead of supervised fine-tuning
  double beta = 0.1;         // of DPO
  double kl = 0;             // coefficient of the KL to the weights the run began with; supervised only
  int64_t kl_tokens = 64;    // k: most probable tokens stored per graded token

  Status validate() const;  // names the field and its range
};

// A micro-batch. `objective` knows its examples, in their order.
struct Lesson {
  std::vector<data::Example> examples;
  std::unique_ptr<const Objective> objective;
};

class Dataset {
 public:
  // With preferences, examples 2i and 2i + 1 are the preferred and the rejected answer of pair i, and an item is a
  // pair; else an item is an example. All must be valid (data::validate), and so must `settings`.
  Dataset(std::vector<data::Example> examples, ObjectiveSettings settings);

  int64_t items() const { return static_cast<int64_t>(examples_.size()) / per_item(); }
  std::vector<int64_t> tokens_per_item() const;
  const std::vector<data::Example>& examples() const { return examples_; }

  std::string hash() const;  // BLAKE3 of all tokens and weights, hexadecimal

  // These items leave this set for one of their own. Before take_references().
  Dataset split_off(std::span<const int64_t> items);

  // Whether the objective compares with the weights the run began with.
  bool needs_references() const { return settings_.preferences || settings_.kl > 0; }
  // Takes what it needs, with the present weights, in batches that together are all items in order. `go_on` is asked
  // after each, with the number of items done; false ends it with kCancelled.
  Status take_references(const Trainer& trainer, std::span<const std::vector<int64_t>> batches,
                         const StepOptions& options, const std::function<bool(int64_t items)>& go_on);

  std::vector<data::Example> examples_of(std::span<const int64_t> items) const;
  Lesson lesson(std::span<const int64_t> items) const;
  // For evaluation: without the KL, so that runs with different coefficients compare.
  Lesson evaluation(std::span<const int64_t> items) const;

 private:
  int64_t per_item() const { return settings_.preferences ? 2 : 1; }
  Lesson make(std::span<const int64_t> items, bool with_kl) const;

  std::vector<data::Example> examples_;
  ObjectiveSettings settings_;
  std::vector<double> log_reference_;               // DPO: per example
  std::vector<ReferenceDistributions> references_;  // KL: per example
};

}  // namespace lathe::train
