#include "model/families/decoder.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace lathe::model {
namespace {

// New files have rope_parameters; older ones rope_theta at the top and rope_scaling. rope_parameters wins.
Status read_rope(ConfigFields& fields, const DecoderDefaults& defaults, ModelConfig& config) {
  const bool modern = fields.has("rope_parameters");
  ConfigFields rope(fields.object(modern ? "rope_parameters" : "rope_scaling"));
  config.rope_theta = rope.number("rope_theta", fields.number("rope_theta", 10000));
  const std::string type = rope.text("rope_type", rope.text("type", "default"));
  if (type == "llama3") {
    Llama3Rope scaling;
    scaling.factor = rope.number("factor", 8);
    scaling.low_freq_factor = rope.number("low_freq_factor", 1);
    scaling.high_freq_factor = rope.number("high_freq_factor", 4);
    scaling.original_max_positions = rope.number("original_max_position_embeddings", 8192);
    config.llama3_rope = scaling;
  } else if (type != "default") {
    return unsupported("rope_type '" + type + "' is not supported; supported are default and llama3");
  }
  const double factor =
      rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", defaults.rotary_factor));
  if (defaults.rotary_factor == 1 && factor != 1)
    return unsupported("partial_rotary_factor is not supported for this architecture");
  if (factor > 1) return invalid_argument("config.json: partial_rotary_factor must be at most 1");
  config.rotary_dim = static_cast<int64_t>(static_cast<double>(config.head_dim) * factor);
  if (config.rotary_dim < 2 || config.rotary_dim % 2 != 0) {
    return invalid_argument("config.json: " + std::to_string(config.rotary_dim) +
                            " dimensions of a head would rotate; they must be even in number");
  }
  if (rope.error()) return *rope.error();
  return {};
}

void read_sizes(ConfigFields& fields, const DecoderDefaults& defaults, ModelConfig& config) {
  config.vocab_size = fields.positive("vocab_size");
  config.hidden_size = fields.positive("hidden_size");
  config.intermediate_size = fields.positive("intermediate_size");
  config.layers = fields.positive("num_hidden_layers");
  config.heads = fields.positive("num_attention_heads");
  config.kv_heads = fields.positive("num_key_value_heads", config.heads);
  config.head_dim = fields.positive(
      "head_dim", defaults.head_dim > 0 ? defaults.head_dim : std::max<int64_t>(1, config.hidden_size / config.heads));
  config.rms_norm_eps = fields.number("rms_norm_eps", 1e-6);
  config.max_positions = fields.positive("max_position_embeddings", 2048);
  config.tie_embeddings = fields.flag("tie_word_embeddings", false);
  // An empty list names no token.
  if (const std::vector<int64_t> pad = fields.ids("pad_token_id"); !pad.empty()) config.pad_token = pad.front();
  if (const std::vector<int64_t> bos = fields.ids("bos_token_id"); !bos.empty()) config.bos_token = bos.front();
}

}  // namespace

Error quantised(ConfigFields& fields) {
  ConfigFields how(fields.object("quantization_config"));
  return unsupported("the model is quantised (quantization_config, quant_method '" +
                     how.text("quant_method", "unknown") + "'); use the bf16 checkpoint it was made from");
}

Status read_decoder(ConfigFields& fields, const DecoderDefaults& defaults, ModelConfig& config) {
  if (fields.has("quantization_config")) return quantised(fields);
  if (fields.flag("use_sliding_window", false))
    return unsupported("sliding-window attention (use_sliding_window) is not supported");
  const std::string activation = fields.text("hidden_act", "silu");
  if (activation != "silu") return unsupported("hidden_act '" + activation + "' is not supported; supported is silu");
  read_sizes(fields, defaults, config);
  if (fields.error()) return *fields.error();
  return read_rope(fields, defaults, config);
}

void read_attention_bias(ConfigFields& fields, ModelConfig& config) {
  if (fields.flag("attention_bias", false)) config.qkv_bias = config.output_bias = true;
}

}  // namespace lathe::model
