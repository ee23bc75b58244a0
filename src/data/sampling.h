// Sampling: how the next token is chosen. Meaning and defaults are those of the OpenAI and vLLM sampling parameters.
//
// Threads: a value.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/result.h"

namespace lathe::data {

struct Sampling {
  double temperature = 1.0;                           // 0 is greedy
  double top_p = 1.0;                                 // (0, 1]
  int64_t top_k = 0;                                  // 0: all
  double min_p = 0.0;                                 // [0, 1]
  double repetition_penalty = 1.0;                    // > 0; over prompt and answer
  double presence_penalty = 0.0;                      // [-2, 2]; over the answer
  double frequency_penalty = 0.0;                     // [-2, 2]
  std::vector<std::pair<int32_t, float>> logit_bias;  // by token id, added to its logit before the penalties
  std::optional<uint64_t> seed;  // same seed, same request, same weights: same tokens, whatever else is running

  Status validate() const;  // names the field and its range
};

}  // namespace lathe::data
