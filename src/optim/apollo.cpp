#include "optim/apollo.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace lathe::optim {
namespace {

// Below this root mean square, an update is too small for its norm to say anything about the next one.
constexpr double kFloorRms = 1e-3;

// P [r, m]: i.i.d. N(0, 1/r), a pure function of (seed, tensor, refresh).
at::Tensor projection(int64_t rank, int64_t m, uint32_t seed, uint32_t stream, int64_t refresh) {
  at::Tensor p = at::empty({rank, m}, at::kFloat);
  kernels::normal_numbers(p.data_ptr<float>(), p.numel(), seed, stream, static_cast<uint32_t>(refresh));
  return p.div_(std::sqrt(static_cast<double>(rank)));
}

}  // namespace

ApolloStep apollo_step(const PartGradient& gradient, double gradient_norm, const ApolloState& state,
                       const OptimizerConfig& config, uint32_t stream) {
  const int64_t m = std::min(gradient.rows(), gradient.columns());
  const bool channels = config.method == Method::kApollo;
  const int64_t rank = channels ? std::min(config.rank, m) : 1;
  const at::Tensor r =
      gradient.project(projection(rank, m, config.seed, stream, state.updates / config.refresh_every));

  ApolloStep step{.gradient_norm = gradient_norm};
  ApolloState& next = step.next;
  next.updates = state.updates + 1;
  next.m = (1 - config.beta1) * r;
  next.v = (1 - config.beta2) * r * r;
  if (state.m.defined()) {
    next.m += config.beta1 * state.m;
    next.v += config.beta2 * state.v;
  }
  const auto t = static_cast<double>(next.updates);
  const double correction1 = 1 - std::pow(config.beta1, t), correction2 = 1 - std::pow(config.beta2, t);
  const at::Tensor adam = (next.m / correction1) / ((next.v / correction2).sqrt() + config.epsilon);

  step.scale = std::sqrt(static_cast<double>(m) / static_cast<double>(rank));
  double norm = 0;
  if (channels) {
    const int64_t along = gradient.tall() ? 1 : 0;
    step.channel_scale = adam.norm(2, along) / r.norm(2, along).clamp_min(1e-30);
    norm = step.scale *
           std::sqrt((step.channel_scale.square() * gradient.channel_squared_norms()).sum(at::kDouble).item<double>());
  } else {
    step.scale *= adam.norm().item<double>() / std::max(r.norm().item<double>(), 1e-30);
    norm = step.scale * gradient_norm;
  }
  const double floor = kFloorRms * std::sqrt(static_cast<double>(gradient.rows()) * static_cast<double>(gradient.columns()));
  if (config.growth_limit > 0 && state.updates > 0) {
    step.limiter = std::max(1.0, norm / std::max(config.growth_limit * state.norm, floor));
  }
  step.scale /= step.limiter;
  next.norm = norm / step.limiter;
  return step;
}

}  // namespace lathe::optim
