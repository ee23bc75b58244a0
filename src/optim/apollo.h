// APOLLO's scaling of one matrix (arXiv 2412.05270, Algorithm 1): Adam runs on a random projection R of the gradient G
// and gives the length of the step; its direction is that of the full gradient.
//
//   R = projection of G                        rank r, fp32
//   M, V = moments of R;  R̃ = M̂ / (sqrt(V̂) + ε)      bias-corrected
//   channel j: s_j = ‖R̃_j‖ / ‖R_j‖        tensor-wise (apollo_mini): s = ‖R̃‖ / ‖R‖
//   U = α G diag(s), α = sqrt(m / r)          m the projected (smaller) side
//   limiter: ‖U‖ may grow by γ per step
//
// Where this departs from the authors' code, and why: α makes the learning rate mean what it means for AdamW; the
// limiter acts on bias-corrected norms (theirs halves the first ten steps of a repeated example); its floor lets a
// tensor recover from a tiny gradient; P is regenerated from its key instead of stored.
// OptimizerConfig::official_compat undoes all of it. docs/research/apollo.md derives it.
//
// Threads: values.
#pragma once

#include <ATen/core/Tensor.h>

#include "optim/config.h"
#include "optim/moments.h"
#include "optim/part_gradient.h"

namespace lathe::optim {

// Along which lines of a matrix there is a scale of its own.
enum class Granularity { kTensor, kChannel };

struct Scaling {
  Granularity granularity;
  int64_t rank;
};
// Of a matrix [a, b]. The vocabulary's rows are many and rarely touched: it is scaled as a whole, at rank 1, by apollo
// too.
Scaling scaling_of(const OptimizerConfig& config, int64_t a, int64_t b, bool vocabulary);

// What an update of one matrix will be: W -= lr * scale * (channel_scale ∘ G).
struct ApolloStep {
  double scale = 0;          // α s / limiter, or α / limiter with channels
  at::Tensor channel_scale;  // [larger side] fp32; undefined when tensor-wise
  double limiter = 1;
  Moments next;  // takes the place of the moments when the update is committed
};

// P [rank, m], i.i.d. N(0, 1/rank): a pure function of config.seed, the part and `updates` / refresh_every. `tall` as
// in PartRows; only official_compat looks at it.
at::Tensor projection(const OptimizerConfig& config, int64_t rank, int64_t m, bool tall, int64_t part_id,
                      int64_t updates);

// What a step is made of before any number is read from a device: reading waits for a GPU, so that it is done once for
// all tensors.
struct ApolloMeasure {
  at::Tensor numbers;        // fp64: ‖G‖², ‖R̃‖, ‖R‖, and with channels Σ (s_j ‖G_j‖)²
  at::Tensor channel_scale;  // as in ApolloStep
  at::Tensor m, v;           // the next moments
  double alpha = 0;          // α
  double elements = 0;       // of G
};
ApolloMeasure apollo_measure(const PartGradient& gradient, const SquaredNorms& norms, const at::Tensor& p,
                             Granularity granularity, const Moments& moments, const OptimizerConfig& config);
// The step, from those numbers on the CPU.
ApolloStep apollo_finish(const ApolloMeasure& measure, const double* numbers, const Moments& moments,
                         const OptimizerConfig& config);

// Both. One step with projection `p`. The gradient's norm must be finite and positive; `norms` has channels if the
// granularity does.
ApolloStep apollo_step(const PartGradient& gradient, const SquaredNorms& norms, const at::Tensor& p,
                       Granularity granularity, const Moments& moments, const OptimizerConfig& config);

}  // namespace lathe::optim
