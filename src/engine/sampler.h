// Sampler: one token from one row of logits.
//
// Order of operations, as vLLM: biases, penalties, temperature, min-p, top-k, top-p, draw. Greedy (temperature 0) takes
// the largest logit after penalties; of equals, the smallest id.
//
// Threads: one per Sampler. Random numbers: Philox keyed by the request's seed, counted by token, so that a request
// gets the same tokens whatever else is running.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"

namespace lathe::engine {

class Sampler {
 public:
  // `seed` is used if the request has none.
  Sampler(const Sampling& sampling, std::span<const int32_t> prompt, uint64_t seed);

  // Chooses the next token and remembers it for the penalties. `logits` [V] is scratch. kInternal if they are not
  // finite.
  Result<int32_t> next(std::span<float> logits);

 private:
  void penalise(std::span<float> logits) const;
  int32_t draw(std::span<const float> logits);

  Sampling sampling_;
  uint64_t seed_;
  uint64_t drawn_ = 0;
  std::unordered_map<int32_t, int64_t> seen_;       // prompt and answer: repetition penalty
  std::unordered_map<int32_t, int64_t> generated_;  // answer: presence and frequency penalties
};

// log softmax(logits)[id] and the `top` most likely tokens.
Token log_probability(std::span<const float> logits, int32_t id, int top);

}  // namespace lathe::engine
