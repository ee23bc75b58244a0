// What every family's config.json has: sizes, the activation, rotary positions, special tokens; and what none may have.
//
// Threads: pure functions.
#pragma once

#include "model/config.h"
#include "model/config_fields.h"

namespace lathe::model {

// What stands in for a field that is absent, where families differ.
struct DecoderDefaults {
  int64_t head_dim = 0;       // 0: hidden_size / num_attention_heads
  double rotary_factor = 1;   // the part of a head that rotates; 1: no other value is accepted
  bool mixed_layers = false;  // the family reads layer_types itself; else all must be full_attention
};

// Refuses by name: quantised weights, sliding windows, activations other than SiLU, rope types other than default and
// llama3.
Status read_decoder(ConfigFields& fields, const DecoderDefaults& defaults, ModelConfig& config);

// attention_bias: of q, k, v and the output projection.
void read_attention_bias(ConfigFields& fields, ModelConfig& config);

// The refusal of a model that has a quantization_config.
Error quantised(ConfigFields& fields);

}  // namespace lathe::model
