// Qwen3.5: gated delta layers, every fourth attends; attention is gated, norms are centred on zero. Released in a
// wrapper with vision.
#include <algorithm>

#include "model/families/decoder.h"
#include "model/families/family.h"

namespace lathe::model {

namespace {

// Layers are listed by type, or every full_attention_interval-th is an attention layer.
void read_mixers(ConfigFields& fields, ModelConfig& config) {
  config.mixers.assign(config.layers, Mixer::kAttention);
  const std::vector<std::string> types = fields.texts("layer_types");
  const int64_t interval = fields.positive("full_attention_interval", 4);
  if (!types.empty() && std::ssize(types) != config.layers) {
    fields.fail(
        "layer_types has " + std::to_string(types.size()) + " entries for " + std::to_string(config.layers) + " layers",
        0);
    return;
  }
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const bool full = types.empty() ? (layer + 1) % interval == 0 : types[layer] == "full_attention";
    config.mixers[layer] = full ? Mixer::kAttention : Mixer::kDelta;
    if (!full && !types.empty() && types[layer] != "linear_attention") {
      fields.fail(
          "layer type '" + types[layer] + "' is not supported; supported are full_attention and linear_attention", 0);
    }
  }
}

void read_delta(ConfigFields& fields, ModelConfig& config) {
  if (!config.has_delta()) return;
  config.delta = {.key_heads = fields.positive("linear_num_key_heads", 16),
                  .value_heads = fields.positive("linear_num_value_heads", 32),
                  .key_dim = fields.positive("linear_key_head_dim", 128),
                  .value_dim = fields.positive("linear_value_head_dim", 128),
                  .kernel = fields.positive("linear_conv_kernel_dim", 4)};
  if (config.delta.value_heads % config.delta.key_heads != 0) {
    fields.fail("linear_num_value_heads (" + std::to_string(config.delta.value_heads) +
                    ") is not a multiple of linear_num_key_heads (" + std::to_string(config.delta.key_heads) + ")",
                0);
  }
  // The gated norm's activation where a file names it; sigmoid belongs to another family.
  const std::string gate = fields.text("output_gate_type", "swish");
  if (gate != "swish" && gate != "silu") {
    fields.fail("output_gate_type '" + gate + "' is not supported; supported is swish", 0);
  }
}

}  // namespace

Status read_qwen3_5(ConfigFields& fields, ModelConfig& config) {
  LATHE_TRY(read_decoder(fields, {.head_dim = 256, .rotary_factor = 0.25, .mixed_layers = true}, config));
  read_attention_bias(fields, config);
  config.qk_norm = config.attention_gate = true;
  config.norm = NormStyle::kZeroCentred;
  read_mixers(fields, config);
  read_delta(fields, config);
  return {};
}

}  // namespace lathe::model
