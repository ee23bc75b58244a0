// Plan: which items each step of a training run sees, in which order.
//
// Why a pure function of sizes, limits and seed: a run that was killed finds its place again from the step's number
// alone. An item is what must stay together: a conversation, or the two answers of a preference pair.
//
// Threads: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace lathe::data {

struct PlanOptions {
  int64_t epochs = 1;      // passes over the items, each in a new order
  int64_t batch = 8;       // items per micro-batch, at most
  int64_t max_tokens = 0;  // tokens per micro-batch, at most; 0: no such limit
  int64_t accumulate = 1;  // micro-batches per step; the last step of an epoch may have fewer
  int64_t max_steps = 0;   // 0: all
  uint32_t seed = 1;

  Status validate() const;  // names the field and its range
};

using ItemBatch = std::vector<int64_t>;      // indices of items that go through the model at once
using StepBatches = std::vector<ItemBatch>;  // micro-batches of one step

// `tokens`: the size of each item. Every item is seen once per epoch; an item larger than max_tokens is refused by its
// number, for it could never be within the memory the limit was set for.
Result<std::vector<StepBatches>> plan(std::span<const int64_t> tokens, const PlanOptions& options);

// All items in order, as micro-batches within the same limits: for evaluation.
Result<std::vector<ItemBatch>> in_order(std::span<const int64_t> tokens, const PlanOptions& options);

// A permutation of 0 .. n - 1 that is a function of (seed, stream).
std::vector<int64_t> shuffled(int64_t n, uint32_t seed, uint32_t stream);

// Which of n items, in ascending order, are kept for evaluation: `fraction` of them, rounded, but at least one of each
// kind. Refuses n < 2 and fractions outside (0, 1).
Result<std::vector<int64_t>> held_out(int64_t n, double fraction, uint32_t seed);

}  // namespace lathe::data
