// APOLLO's scaling of one matrix (arXiv 2412.05270, Algorithm 1): Adam runs on a random projection R of the gradient G, and
// only says how long the step is; its direction is the full gradient.
//
//   R = projection of G                        rank r, fp32
//   M, V = moments of R;  R̃ = M̂ / (sqrt(V̂) + ε)      bias-corrected
//   channel j: s_j = ‖R̃_j‖ / ‖R_j‖        tensor-wise (apollo_mini): s = ‖R̃‖ / ‖R‖
//   U = α G diag(s), α = sqrt(m / r)          m the projected (smaller) side
//   limiter: ‖U‖ may grow by γ per step
//
// Where this departs from the authors' code, and why: α makes the learning rate mean what it means for AdamW; the limiter
// acts on bias-corrected norms (theirs halves the first ten steps of a repeated example); its floor lets a tensor recover
// from a tiny gradient; P is regenerated from its key instead of stored. docs/research/apollo.md derives all of it.
//
// Threads: values.
#pragma once

#include <ATen/core/Tensor.h>

#include "optim/factors.h"
#include "optim/optimizer.h"

namespace lathe::optim {

// State of one matrix; undefined moments mean that no update was committed yet.
struct ApolloState {
  at::Tensor m, v;     // of R, fp32
  int64_t updates = 0;
  double norm = 0;     // ‖U‖ of the last update, limited
};

// What an update of one matrix will be: W -= lr * scale * (channel_scale ∘ G).
struct ApolloStep {
  double scale = 0;         // α s / limiter, or α / limiter with channels
  at::Tensor channel_scale; // [larger side] fp32; undefined when tensor-wise
  double gradient_norm = 0;
  double limiter = 1;
  ApolloState next;         // takes the place of the state when the update is committed
};

// `stream` keys the projection. The gradient's norm must be finite and positive.
ApolloStep apollo_step(const PartGradient& gradient, double gradient_norm, const ApolloState& state,
                       const OptimizerConfig& config, uint32_t stream);

}  // namespace lathe::optim
