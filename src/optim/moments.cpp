#include "optim/moments.h"

#include <cmath>

namespace lathe::optim {

BiasCorrection bias_correction(const OptimizerConfig& config, int64_t updates) {
  const auto t = static_cast<double>(updates);
  return {1 / (1 - std::pow(config.beta1, t)), 1 / (1 - std::pow(config.beta2, t))};
}

kernels::AdamCoefficients adam_coefficients(const OptimizerConfig& config, int64_t updates) {
  const auto [first, second] = bias_correction(config, updates);
  kernels::AdamCoefficients c{.beta1 = static_cast<float>(config.beta1),
                              .beta2 = static_cast<float>(config.beta2),
                              .first = static_cast<float>(first),
                              .second = static_cast<float>(second),
                              .epsilon = static_cast<float>(config.epsilon)};
  if (config.official_compat) {
    // Both corrections go before the quotient, so that ε is added to the uncorrected root.
    c.first = static_cast<float>(first / std::sqrt(second));
    c.second = 1;
  }
  return c;
}

}  // namespace lathe::optim
