#include "model/sequence_state.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace lathe::model {

SequenceState::SequenceState(const ModelConfig& config, at::TensorOptions options, int64_t expected_tokens) {
  keys_.resize(config.layers);
  values_.resize(config.layers);
  delta_.resize(config.layers);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    if (config.mixer(layer) != Mixer::kAttention) continue;
    keys_[layer] = at::empty({config.kv_heads, expected_tokens, config.head_dim}, options);
    values_[layer] = at::empty({config.kv_heads, expected_tokens, config.head_dim}, options);
  }
}

int64_t SequenceState::bytes() const {
  int64_t sum = 0;
  const auto add = [&](const at::Tensor& t) { sum += t.defined() ? static_cast<int64_t>(t.nbytes()) : 0; };
  for (size_t layer = 0; layer < keys_.size(); ++layer) {
    add(keys_[layer]), add(values_[layer]), add(delta_[layer].history), add(delta_[layer].recurrent);
  }
  return sum;
}

void SequenceState::reserve(int64_t layer, int64_t tokens) {
  if (keys_[layer].size(1) >= tokens) return;
  const int64_t capacity = std::max(tokens, keys_[layer].size(1) * 2);
  for (at::Tensor* cache : {&keys_[layer], &values_[layer]}) {
    at::Tensor larger = at::empty({cache->size(0), capacity, cache->size(2)}, cache->options());
    larger.narrow(1, 0, length_).copy_(cache->narrow(1, 0, length_));
    *cache = std::move(larger);
  }
}

void SequenceState::append(int64_t layer, const at::Tensor& k, const at::Tensor& v) {
  const int64_t n = k.size(0);
  reserve(layer, length_ + n);
  keys_[layer].narrow(1, length_, n).copy_(k.transpose(0, 1));
  values_[layer].narrow(1, length_, n).copy_(v.transpose(0, 1));
}

}  // namespace lathe::model
