// What a training run will take, before it begins: tokens, operations, memory by part. Shapes are enough: nothing here
// reads a weight.
//
// Accuracy: tests/e2e/test_train.py compares memory peaks with measured runs, within a factor of 1.5 for SmolLM2 on a
// CPU. What libraries allocate for themselves while they multiply is estimated, not known.
// Threads: pure functions.
#pragma once

#include <cstdint>
#include <span>

#include "data/example.h"
#include "model/model.h"
#include "train/dataset.h"
#include "train/run.h"

namespace lathe::train {

// Of one micro-batch, or summed over several.
struct PassSize {
  int64_t sequences = 0;
  int64_t rows = 0;  // that are computed: those after the last graded token are not
  int64_t live_rows = 0;
  int64_t live_runs = 0;
  int64_t graded = 0;     // tokens with a loss
  int64_t longest = 0;    // keys that a live row looks at, at most
  double pairs = 0;       // (query, key) pairs that attention looks at
  double live_pairs = 0;  // of these, with a live query
  void operator+=(const PassSize& other);
};
PassSize pass_size(std::span<const data::Example> examples, data::ContextMode mode);

// Floating-point operations that a step over such a pass cannot avoid: two per weight and row forward, four more
// backward for live rows, attention likewise; no recomputation. What recurrent layers do besides their projections is
// small and left out.
double operations(const model::ModelConfig& config, const weights::WeightStore& store, const PassSize& pass);

// Bytes at the moment of the peak.
struct MemoryEstimate {
  int64_t program = 0;  // the process without a model: code, libraries, the data set
  int64_t weights = 0;
  int64_t optimizer = 0;    // its state
  int64_t references = 0;   // of DPO and KL
  int64_t context = 0;      // keys, values and recurrent states
  int64_t activations = 0;  // kept inputs of layers, and what one layer or one slice of the loss works with
  int64_t gradients = 0;    // factors or dense matrices, and what a commit works with
  int64_t total() const { return program + weights + optimizer + references + context + activations + gradients; }
};

// Of a run's largest step. `program` is what the process holds before the model is loaded (base/memory.h).
MemoryEstimate estimate_memory(const model::ModelConfig& config, const weights::WeightStore& store,
                               const RunSettings& settings, const Dataset& training, const RunPlan& plan,
                               int64_t program);

// What one lesson takes beside the model: a step over all its examples at once, and the optimizer's state.
int64_t estimate_lesson(const model::ModelConfig& config, const weights::WeightStore& store,
                        const optim::OptimizerConfig& optimizer, const StepOptions& step,
                        std::span<const data::Example> examples);
// What a lesson may take: what the machine has available now; on a GPU all of its memory but the weights, since what
// torch keeps of earlier lessons is used again.
int64_t free_for_lessons(const weights::WeightStore& store);

}  // namespace lathe::train
