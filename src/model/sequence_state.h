// SequenceState: what a sequence's past leaves behind for its next tokens: keys and values of every attention layer.
//
// Memory: owns its tensors, [kv_heads, capacity, head_dim] per layer; capacity doubles as the sequence grows. Views
// handed out stay valid until the next append().
// Threads: one at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/config.h"

namespace lathe::model {

class SequenceState {
 public:
  SequenceState(const ModelConfig& config, at::TensorOptions options, int64_t expected_tokens);

  // Tokens whose keys and values all layers hold.
  int64_t length() const { return length_; }
  int64_t bytes() const;

  // Writes k, v [n, kv_heads, head_dim] of one layer behind the present length. Every layer appends the same n, then
  // advance(n) makes them part of the past.
  void append(int64_t layer, const at::Tensor& k, const at::Tensor& v);
  void advance(int64_t n) { length_ += n; }
  // Forgets everything from `length` on.
  void truncate(int64_t length) { length_ = length; }

  // [kv_heads, end, head_dim], keys after norm and rotation. `end` may include rows appended and not yet advanced.
  at::Tensor keys(int64_t layer, int64_t end) const { return keys_[layer].narrow(1, 0, end); }
  at::Tensor values(int64_t layer, int64_t end) const { return values_[layer].narrow(1, 0, end); }

 private:
  void reserve(int64_t layer, int64_t tokens);

  int64_t length_ = 0;
  std::vector<at::Tensor> keys_, values_;
};

}  // namespace lathe::model
