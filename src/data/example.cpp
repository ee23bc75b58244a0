#include "data/example.h"

#include <cmath>
#include <string>

namespace lathe::data {

Status validate(const Example& example, int64_t vocab_size, int64_t max_positions) {
  const auto n = static_cast<int64_t>(example.tokens.size());
  if (n < 2) return invalid_argument("the example has " + std::to_string(n) + " tokens; at least 2 are needed");
  if (example.weights.size() != example.tokens.size()) {
    return invalid_argument("the example has " + std::to_string(n) + " tokens but " +
                            std::to_string(example.weights.size()) + " weights");
  }
  if (n > max_positions) {
    return invalid_argument("the conversation has " + std::to_string(n) + " tokens; the model's context holds " +
                            std::to_string(max_positions));
  }
  bool graded = false;
  for (int64_t t = 0; t < n; ++t) {
    const int32_t token = example.tokens[t];
    if (token < 0 || token >= vocab_size) {
      return invalid_argument("token " + std::to_string(token) + " at position " + std::to_string(t) +
                              " is outside the vocabulary of " + std::to_string(vocab_size));
    }
    const float weight = example.weights[t];
    if (!std::isfinite(weight) || weight < 0) {
      return invalid_argument("the weight at position " + std::to_string(t) + " is not a finite number >= 0");
    }
    if (weight > 0) graded = true;
  }
  if (example.weights[0] > 0) return invalid_argument("the first token cannot be graded: nothing predicts it");
  if (!graded) return invalid_argument("nothing is graded: all weights are zero");
  return {};
}

Status validate(std::span<const Example> examples, int64_t vocab_size, int64_t max_positions) {
  if (examples.empty()) return invalid_argument("there is no example to learn from");
  for (size_t i = 0; i < examples.size(); ++i) {
    const Status valid = validate(examples[i], vocab_size, max_positions);
    if (!valid.ok()) return examples.size() == 1 ? valid.error() : valid.error().at("example " + std::to_string(i));
  }
  return {};
}

std::vector<Segment> live_segments(const Example& example, ContextMode mode) {
  const auto n = static_cast<int64_t>(example.tokens.size());
  // The last row predicts nothing, so no mode computes it with gradient.
  if (mode == ContextMode::kExact) return {{0, n - 1}};
  std::vector<Segment> segments;
  for (int64_t t = 1; t < n; ++t) {
    if (example.weights[t] <= 0) continue;
    if (!segments.empty() && segments.back().end == t - 1) {
      segments.back().end = t;
    } else {
      segments.push_back({t - 1, t});
    }
  }
  return segments;
}

double total_weight(std::span<const Example> examples) {
  double sum = 0;
  for (const Example& example : examples) {
    for (const float weight : example.weights) sum += weight;
  }
  return sum;
}

}  // namespace lathe::data
