// A tokenised training example, and which of its rows need a gradient.
//
// Row p of a sequence reads token p and predicts token p+1. `weights[t]` belongs to *token* t: it is the weight of the
// loss of predicting token t, 0 for context. Live rows are those computed with gradient; all other rows are context,
// whose keys and values are constants to the backward pass (frozen context, docs/dataflow.md).
//
// Threads: values.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace lathe::data {

struct Example {
  std::vector<int32_t> tokens;
  std::vector<float> weights;  // one per token; weights[0] must be 0: nothing predicts the first token
};

// Rows [begin, end) of one sequence, all live.
struct Segment {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const Segment&) const = default;
};

enum class ContextMode {
  kFrozen,  // one segment per stretch of graded tokens, opened by the last context token before it
  kExact,   // the whole sequence is live: gradient through everything, the oracle
};

// Refuses by name: empty or mismatched lengths, a token outside the vocabulary, more tokens than positions, a weight
// that is negative or not finite, a graded first token, nothing graded.
Status validate(const Example& example, int64_t vocab_size, int64_t max_positions);

// The same for all of a batch, which must not be empty; names the example by its number if there are several.
Status validate(std::span<const Example> examples, int64_t vocab_size, int64_t max_positions);

// The live segments of a valid example, in order, disjoint. A segment of tokens g..h graded covers rows g-1..h-1.
std::vector<Segment> live_segments(const Example& example, ContextMode mode);

// Sum of the weights: the divisor of the mean loss.
double total_weight(std::span<const Example> examples);

}  // namespace lathe::data
