// Pass: which rows a layer is run on, and whether to serve or to teach.
//
// Serving (no sink): each run reads its state and its own earlier rows, and moves the state on. Teaching (a sink,
// autograd on): each run reads its state as a constant and its own earlier rows with gradient; states stay as they are,
// and parameters' gradients go to the sink.
// Threads: values.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "model/config.h"
#include "model/sequence_state.h"
#include "weights/gradient.h"

namespace lathe::model {

// Rows [begin, begin + count) of a packed batch are tokens position .. position + count - 1 of one sequence. A serving
// pass needs position == state->length(); a teaching pass a state that was taken at `position`.
struct SequenceRows {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t position = 0;
  SequenceState* state = nullptr;
};

// Rotation tables of packed rows: cos and sin [N, rotary_dim / 2] in the compute dtype.
struct Rotary {
  at::Tensor cos, sin;
};

// One layer's.
struct Pass {
  const ModelConfig& config;
  int64_t layer;
  std::span<const SequenceRows> runs;
  const Rotary& rotary;
  weights::GradientSink* sink;  // null: serving
};

}  // namespace lathe::model
