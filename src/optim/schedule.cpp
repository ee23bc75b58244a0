#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

namespace lathe::optim {

Result<Decay> parse_decay(std::string_view name) {
  if (name == "constant") return Decay::kConstant;
  if (name == "linear") return Decay::kLinear;
  if (name == "cosine") return Decay::kCosine;
  return invalid_argument("schedule '" + std::string(name) + "' is not known; known are constant, linear and cosine");
}

Status Schedule::validate() const {
  if (!(peak > 0) || !std::isfinite(peak)) return invalid_argument("the learning rate must be a positive number");
  if (warmup_steps < 0) return invalid_argument("warmup_steps must not be negative");
  if (!(final_fraction >= 0 && final_fraction <= 1)) return invalid_argument("final_fraction must be in [0, 1]");
  if (decay != Decay::kConstant && steps <= warmup_steps) {
    return invalid_argument("a decaying schedule needs more steps than the " + std::to_string(warmup_steps) +
                            " of its warm-up");
  }
  return {};
}

double Schedule::lr_at(int64_t step) const {
  if (step < warmup_steps) return peak * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  if (decay == Decay::kConstant) return peak;
  const int64_t last = std::min(step, steps - 1);
  const double done = static_cast<double>(last - warmup_steps) / static_cast<double>(steps - warmup_steps);
  const double left = decay == Decay::kLinear ? 1 - done : 0.5 * (1 + std::cos(std::numbers::pi * done));
  return peak * (final_fraction + (1 - final_fraction) * left);
}

}  // namespace lathe::optim
