// Learning-rate schedules.
//
// Threads: values.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace lathe::optim {

enum class Decay { kConstant, kLinear, kCosine };

// "constant", "linear", "cosine".
Result<Decay> parse_decay(std::string_view name);

// Linear warm-up to `peak`, then a decay to `final_fraction` of it. Every step has a positive rate, the first and the
// last too: warm-up reaches `peak` with step warmup_steps - 1, and the decay begins one step later and would end with
// step `steps`.
struct Schedule {
  Decay decay = Decay::kConstant;
  double peak = 1e-5;
  int64_t warmup_steps = 0;
  int64_t steps = 0;  // of the whole run; may be 0 when the decay is constant
  double final_fraction = 0;

  Status validate() const;           // names the field and its range
  double lr_at(int64_t step) const;  // step counts from 0; beyond the run, that of the last step
};

}  // namespace lathe::optim
