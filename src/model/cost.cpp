#include "model/cost.h"

#include <algorithm>

#include "model/layers/attention.h"
#include "model/layers/gated_delta.h"
#include "model/layers/mlp.h"

namespace lathe::model {
namespace {

int64_t attention_layers(const ModelConfig& c) {
  int64_t count = 0;
  for (int64_t layer = 0; layer < c.layers; ++layer) count += c.mixer(layer) == Mixer::kAttention;
  return count;
}

}  // namespace

// Inputs and outputs of linear layers, and what stands between them; a recurrence keeps its own in fp32.
int64_t Cost::activations() const {
  int64_t elements = 0;
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    elements += 6 * config_.hidden_size + mlp_kept(config_);
    elements += config_.mixer(layer) == Mixer::kAttention ? attention_kept(config_) : delta_kept(config_);
  }
  return elements * element_;
}

int64_t Cost::layer_inputs() const {
  return (config_.layers + 1) * config_.hidden_size * element_;
}

int64_t Cost::context(int64_t rows, int64_t sequences) const {
  const int64_t attending = attention_layers(config_), recurrent = config_.layers - attending;
  return attending * rows * attention_past(config_) * element_ +
         recurrent * 2 * sequences * delta_state_bytes(config_, element_);
}

int64_t Cost::layer(int64_t rows, int64_t longest, bool graph) const {
  const int64_t d = config_.hidden_size;
  const int64_t mixer = std::max(attention_row(config_), config_.has_delta() ? delta_row(config_) : 0);
  if (!graph) return rows * ((3 * d + 2 * mixer + mlp_row(config_)) * element_ + d * 4);
  // The mask of attention, and its fp32 twin.
  const int64_t mask = std::min(rows, longest) * longest * (1 + element_);
  return rows * ((10 * d + 5 * mixer + mlp_graph(config_)) * element_ + 4 * d * 4) + mask;
}

int64_t Cost::logits() const {
  return config_.vocab_size * element_;
}

int64_t Cost::head_factors() const {
  return (config_.vocab_size + config_.hidden_size) * element_;
}

int64_t Cost::embedding_factors() const {
  return config_.hidden_size * element_;
}

int64_t Cost::dense_table() const {
  return config_.vocab_size * config_.hidden_size * 4;
}

double Cost::head_operations() const {
  return 6.0 * static_cast<double>(config_.vocab_size * config_.hidden_size);
}

double Cost::attention_operations() const {
  return 4.0 * static_cast<double>(config_.heads * config_.head_dim * attention_layers(config_));
}

}  // namespace lathe::model
