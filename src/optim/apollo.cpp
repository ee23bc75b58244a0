#include "optim/apollo.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "gpu/device.h"
#include "kernels/adam.h"
#include "kernels/squares.h"
#include "optim/gpu_writer.h"

namespace lathe::optim {
namespace {

// Below this root mean square, an update is too small for its norm to say anything about the next one.
constexpr double kFloorRms = 1e-3;

// What the authors add to every norm they divide by.
constexpr double kOfficialEpsilon = 1e-8;

// The authors' seed after `refreshes` refreshes: each the 15th number that a generator with the seed before draws.
uint64_t official_seed(uint64_t seed, int64_t refreshes) {
  constexpr int64_t kDraws = 15;
  for (int64_t i = 0; i < refreshes; ++i) {
    const at::Tensor draws = at::randint(std::numeric_limits<int64_t>::max(), {kDraws},
                                         at::make_generator<at::CPUGeneratorImpl>(seed), at::kLong);
    seed = static_cast<uint64_t>(draws[kDraws - 1].item<int64_t>());
  }
  return seed;
}

// ‖U‖ and what it is limited by. U must not yet be limited.
double limiter(double norm, double floor, const Moments& moments, const OptimizerConfig& config) {
  if (config.growth_limit == 0 || moments.updates == 0) return 1;
  if (config.official_compat) {
    return std::max(norm / (moments.norm + kOfficialEpsilon), config.growth_limit) / config.growth_limit;
  }
  return std::max(1.0, norm / std::max(config.growth_limit * moments.norm, floor));
}

}  // namespace

Scaling scaling_of(const OptimizerConfig& config, int64_t a, int64_t b, bool vocabulary) {
  const bool mini = config.method == Method::kApolloMini;
  if (!mini && vocabulary) return {Granularity::kTensor, 1};
  return {mini ? Granularity::kTensor : Granularity::kChannel, std::min({config.projection_rank(), a, b})};
}

at::Tensor projection(const OptimizerConfig& config, int64_t rank, int64_t m, bool tall, int64_t part_id,
                      int64_t updates) {
  const int64_t refresh = updates / config.refresh_every;
  at::Tensor p;
  if (config.official_compat) {
    const uint64_t seed = official_seed(config.seed + static_cast<uint64_t>(part_id), refresh);
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    // They multiply a wide gradient from the left by [m, rank].
    p = tall ? at::randn({rank, m}, generator) : at::randn({m, rank}, generator).t();
  } else {
    p = at::empty({rank, m}, at::kFloat);
    kernels::normal_numbers(p.data_ptr<float>(), p.numel(), config.seed, static_cast<uint32_t>(part_id),
                            static_cast<uint32_t>(refresh));
  }
  return p / std::sqrt(static_cast<double>(rank));
}

namespace {

// R̃; measure.m and .v become the moments moved on by R.
at::Tensor move_moments(const at::Tensor& r, const Moments& moments, const OptimizerConfig& config,
                        ApolloMeasure& measure) {
  if (r.is_cpu() && !config.official_compat) {
    at::Tensor adam = r.clone(at::MemoryFormat::Contiguous);
    measure.m = moments.m.defined() ? moments.m.clone() : at::zeros_like(adam);
    measure.v = moments.m.defined() ? moments.v.clone() : at::zeros_like(adam);
    kernels::adam_direction(adam.data_ptr<float>(), measure.m.data_ptr<float>(), measure.v.data_ptr<float>(),
                            adam.numel(), adam_coefficients(config, moments.updates + 1));
    return adam;
  }
  measure.m = (1 - config.beta1) * r;
  measure.v = (1 - config.beta2) * r * r;
  if (moments.m.defined()) {
    measure.m += config.beta1 * moments.m;
    measure.v += config.beta2 * moments.v;
  }
  if (config.official_compat) return measure.m / (measure.v.sqrt() + config.epsilon);
  const BiasCorrection correction = bias_correction(config, moments.updates + 1);
  return correction.first * measure.m / ((correction.second * measure.v).sqrt() + config.epsilon);
}

double norm_of(const at::Tensor& t) {
  double squares = 0;
  kernels::row_squares(t.const_data_ptr<float>(), 1, t.numel(), &squares);
  return std::sqrt(squares);
}

// Moves the moments on by R, measures R̃ and R, as a whole or channel by channel.
void measure_moments(const at::Tensor& r, const PartGradient& gradient, const SquaredNorms& norms,
                     Granularity granularity, const Moments& moments, const OptimizerConfig& config,
                     ApolloMeasure& measure) {
  const at::Tensor adam = move_moments(r, moments, config, measure);
  if (r.is_cpu() && r.is_contiguous() && granularity == Granularity::kTensor && !config.official_compat) {
    // A tensor operation takes longer than the few numbers of a small matrix do.
    measure.numbers = at::tensor({norms.total(), norm_of(adam), norm_of(r), 0.0}, at::kDouble);
    return;
  }
  const double tiny = config.official_compat ? kOfficialEpsilon : 0;
  at::Tensor scaled = at::zeros_like(norms.sum);
  if (granularity == Granularity::kChannel) {
    // Channels lie along the larger side, which is the first of R if G is tall.
    const int64_t along = gradient.tall() ? 1 : 0;
    measure.channel_scale = adam.norm(2, along) / (r.norm(2, along) + tiny).clamp_min(1e-30);
    scaled = (measure.channel_scale.square() * norms.channels).sum(at::kDouble);
  }
  measure.numbers = at::stack({norms.sum, adam.norm().to(at::kDouble), r.norm().to(at::kDouble), scaled});
}

}  // namespace

ApolloMeasure apollo_measure(const PartGradient& gradient, const SquaredNorms& norms, const at::Tensor& p,
                             Granularity granularity, const Moments& moments, const OptimizerConfig& config) {
  const at::Tensor r = gradient.project(p);
  const auto m = static_cast<double>(p.size(1)), rank = static_cast<double>(p.size(0));
  ApolloMeasure measure{.alpha = std::sqrt(config.scale.value_or(m / rank)),
                        .elements = static_cast<double>(gradient.rows().rows() * gradient.rows().columns())};
  if constexpr (gpu::kBuilt) {
    if (r.is_cuda() && granularity == Granularity::kTensor && !config.official_compat) {
      ProjectedMoments moved = gpu_moments(r, moments.m, moments.v, adam_coefficients(config, moments.updates + 1));
      measure.m = std::move(moved.m);
      measure.v = std::move(moved.v);
      measure.numbers = at::cat({norms.sum.view({1}), moved.norms});
      return measure;
    }
  }
  measure_moments(r, gradient, norms, granularity, moments, config, measure);
  return measure;
}

ApolloStep apollo_finish(const ApolloMeasure& measure, const double* numbers, const Moments& moments,
                         const OptimizerConfig& config) {
  const bool compat = config.official_compat;
  ApolloStep step{.scale = 1, .channel_scale = measure.channel_scale};
  step.next = {.m = measure.m, .v = measure.v, .updates = moments.updates + 1};
  double norm = 0;  // of G diag(s)
  if (measure.channel_scale.defined()) {
    norm = std::sqrt(numbers[3]);
  } else {
    step.scale = numbers[1] / std::max(numbers[2] + (compat ? kOfficialEpsilon : 0), 1e-30);
    norm = step.scale * std::sqrt(numbers[0]);
  }
  // α is in the norm that is limited, so that the floor is in AdamW's units; the authors leave it out.
  if (!compat) norm *= measure.alpha;
  step.limiter = limiter(norm, kFloorRms * std::sqrt(measure.elements), moments, config);
  step.next.norm = norm / step.limiter;
  step.scale *= measure.alpha / step.limiter;
  if (compat) {
    const BiasCorrection correction = bias_correction(config, step.next.updates);
    step.scale *= correction.first / std::sqrt(correction.second);
  }
  return step;
}

ApolloStep apollo_step(const PartGradient& gradient, const SquaredNorms& norms, const at::Tensor& p,
                       Granularity granularity, const Moments& moments, const OptimizerConfig& config) {
  const ApolloMeasure measure = apollo_measure(gradient, norms, p, granularity, moments, config);
  return apollo_finish(measure, measure.numbers.cpu().const_data_ptr<double>(), moments, config);
}

}  // namespace lathe::optim
