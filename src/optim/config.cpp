#include "optim/config.h"

#include <cmath>
#include <string>

namespace lathe::optim {

Result<Method> parse_method(std::string_view name) {
  for (const Method method : {Method::kApolloMini, Method::kApollo, Method::kAdamW, Method::kSgd}) {
    if (method_name(method) == name) return method;
  }
  return invalid_argument("optimizer '" + std::string(name) +
                          "' is not known; known are apollo_mini, apollo, adamw and sgd");
}

std::string_view method_name(Method method) {
  switch (method) {
    case Method::kApolloMini:
      return "apollo_mini";
    case Method::kApollo:
      return "apollo";
    case Method::kAdamW:
      return "adamw";
    case Method::kSgd:
      return "sgd";
  }
  return "";
}

Result<kernels::Rounding> parse_rounding(std::string_view name) {
  if (name == "stochastic") return kernels::Rounding::kStochastic;
  if (name == "nearest") return kernels::Rounding::kNearest;
  if (name == "shadow") return kernels::Rounding::kShadow;
  return invalid_argument("rounding '" + std::string(name) +
                          "' is not known; known are stochastic, nearest and shadow");
}

Status OptimizerConfig::validate() const {
  const auto require = [](bool holds, const char* what) { return holds ? Status() : Status(invalid_argument(what)); };
  LATHE_TRY(require(!rank || *rank >= 1, "optimizer rank must be at least 1"));
  LATHE_TRY(require(refresh_every >= 1, "optimizer refresh_every must be at least 1"));
  LATHE_TRY(require(beta1 >= 0 && beta1 < 1, "optimizer beta1 must be in [0, 1)"));
  LATHE_TRY(require(beta2 >= 0 && beta2 < 1, "optimizer beta2 must be in [0, 1)"));
  LATHE_TRY(require(epsilon > 0 && std::isfinite(epsilon), "optimizer epsilon must be positive"));
  LATHE_TRY(require(weight_decay >= 0 && weight_decay <= 1, "weight_decay must be in [0, 1]"));
  LATHE_TRY(require(!scale || (*scale > 0 && std::isfinite(*scale)), "optimizer scale must be positive"));
  LATHE_TRY(require(tile_elements >= 1, "optimizer tile_elements must be at least 1"));
  return require(growth_limit == 0 || (growth_limit > 1 && std::isfinite(growth_limit)),
                 "growth_limit must be above 1, or 0 for none");
}

}  // namespace lathe::optim
