// SequenceState: what a sequence's next tokens need of its past: keys and values of every attention layer;
// the last inputs of the convolution and the recurrent state of every gated delta layer.
//
// Memory: owns its tensors. Keys and values are [kv_heads, capacity, head_dim] per layer; capacity doubles as the
// sequence grows; views handed out stay valid until the next append(). A copy is a snapshot that costs no memory: it
// shares the tensors, the original only writes past the copy's length, and delta states are replaced, never changed.
// Threads: one at a time, copies included.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/config.h"

namespace lathe::model {

// Of one gated delta layer. Undefined tensors mean zeros: nothing has been read yet.
struct DeltaState {
  at::Tensor history;    // [kernel - 1, channels], before the convolution, oldest first
  at::Tensor recurrent;  // [value_heads, key_dim, value_dim] fp32
};

class SequenceState {
 public:
  SequenceState(const ModelConfig& config, at::TensorOptions options, int64_t expected_tokens);

  // Tokens that all layers have taken in.
  int64_t length() const { return length_; }
  int64_t bytes() const;

  // Writes k, v [n, kv_heads, head_dim] of one attention layer after the present length. Every layer takes in the same
  // n, then advance(n) makes them part of the past.
  void append(int64_t layer, const at::Tensor& k, const at::Tensor& v);
  void advance(int64_t n) { length_ += n; }

  // [kv_heads, end, head_dim], keys after norm and rotation. `end` may include rows appended and not yet advanced.
  at::Tensor keys(int64_t layer, int64_t end) const { return keys_[layer].narrow(1, 0, end); }
  at::Tensor values(int64_t layer, int64_t end) const { return values_[layer].narrow(1, 0, end); }

  const DeltaState& delta(int64_t layer) const { return delta_[layer]; }
  // The tensors must not change afterwards.
  void set_history(int64_t layer, at::Tensor history) { delta_[layer].history = std::move(history); }
  void set_recurrent(int64_t layer, at::Tensor recurrent) { delta_[layer].recurrent = std::move(recurrent); }

 private:
  void reserve(int64_t layer, int64_t tokens);

  int64_t length_ = 0;
  std::vector<at::Tensor> keys_, values_;  // undefined for delta layers
  std::vector<DeltaState> delta_;
};

}  // namespace lathe::model
