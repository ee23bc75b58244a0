#include "model/families/decoder.h"

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>

namespace lathe::model {
namespace {

// Fields that say nothing of rotary positions of their own type, as some programs leave them.
bool is_known(const std::string& type, const std::string& name) {
  const auto one_of = [&](std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  // Sections of positions in time, height and width: in text the three are one.
  if (one_of({"rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved",
              "original_max_position_embeddings"})) {
    return true;
  }
  return type == "llama3" && one_of({"factor", "low_freq_factor", "high_freq_factor"});
}

// One set of rotary parameters. `outer`: config.json's own fields, where older files have some of them.
Status read_rope_set(ConfigFields& rope, ConfigFields& outer, const DecoderDefaults& defaults, ModelConfig& config) {
  config.rope_theta = rope.number("rope_theta", outer.number("rope_theta", 10000));
  const std::string type = rope.text("rope_type", rope.text("type", "default"));
  if (rope.error()) return *rope.error();
  if (type != "llama3" && type != "default")
    return unsupported("rope_type '" + type + "' is not supported; supported are default and llama3");
  for (const std::string& name : rope.names()) {
    if (!is_known(type, name))
      return unsupported(rope.place() + ": rotary positions of rope_type '" + type + "' with a field '" + name +
                         "' are not supported");
  }
  if (type == "llama3") {
    for (const char* needed : {"factor", "low_freq_factor", "high_freq_factor"}) {
      if (!rope.has(needed)) return invalid_argument(std::string("config.json: rope_type 'llama3' needs a ") + needed);
    }
    Llama3Rope scaling;
    scaling.factor = rope.number("factor", 1);
    scaling.low_freq_factor = rope.number("low_freq_factor", 1);
    scaling.high_freq_factor = rope.number("high_freq_factor", 4);
    if (scaling.high_freq_factor <= scaling.low_freq_factor)
      return invalid_argument("config.json: high_freq_factor must be greater than low_freq_factor");
    const double trained =
        outer.number("original_max_position_embeddings",
                     rope.number("original_max_position_embeddings", static_cast<double>(config.max_positions)));
    scaling.original_max_positions = trained;
    config.llama3_rope = scaling;
  }
  const double factor =
      rope.number("partial_rotary_factor", outer.number("partial_rotary_factor", defaults.rotary_factor));
  if (rope.error()) return *rope.error();
  if (outer.error()) return *outer.error();
  if (defaults.rotary_factor == 1 && factor != 1)
    return unsupported("partial_rotary_factor is not supported for this architecture");
  if (factor > 1) return invalid_argument("config.json: partial_rotary_factor must be at most 1");
  config.rotary_dim = static_cast<int64_t>(static_cast<double>(config.head_dim) * factor);
  if (config.rotary_dim < 2 || config.rotary_dim % 2 != 0) {
    return invalid_argument("config.json: " + std::to_string(config.rotary_dim) +
                            " dimensions of a head would rotate; they must be even in number");
  }
  return {};
}

// The set of `field`, which is an object with rotary parameters, or one with such an object per type of layer; only
// layers of full attention have positions in the families there are.
Status read_rope_field(ConfigFields& fields, const char* field, const DecoderDefaults& defaults, ModelConfig& config) {
  constexpr const char* kFull = "full_attention";
  const std::string place = std::string("config.json: ") + field;
  ConfigFields rope(fields.object(field), place);
  bool nested = false;
  for (const std::string& name : rope.names()) nested |= name.ends_with("_attention");
  if (fields.error()) return *fields.error();
  if (!nested) return read_rope_set(rope, fields, defaults, config);
  if (!rope.has(kFull))
    return unsupported(place + " has no " + kFull + "; attention without positions is not supported");
  ConfigFields full(rope.object(kFull), place + "." + kFull);
  if (rope.error()) return *rope.error();
  return read_rope_set(full, fields, defaults, config);
}

bool same_rope(const ModelConfig& a, const ModelConfig& b) {
  return a.rope_theta == b.rope_theta && a.llama3_rope == b.llama3_rope && a.rotary_dim == b.rotary_dim;
}

// New files have rope_parameters; older ones rope_theta at the top and rope_scaling. transformers 5 takes rope_scaling
// where there are both, other programs the other one: they must say the same.
Status read_rope(ConfigFields& fields, const DecoderDefaults& defaults, ModelConfig& config) {
  const bool modern = !fields.object("rope_parameters").empty(), old = !fields.object("rope_scaling").empty();
  if (fields.error()) return *fields.error();
  LATHE_TRY(read_rope_field(fields, modern ? "rope_parameters" : "rope_scaling", defaults, config));
  if (!modern || !old) return {};
  ModelConfig other = config;
  other.llama3_rope.reset();
  LATHE_TRY(read_rope_field(fields, "rope_scaling", defaults, other));
  if (same_rope(config, other)) return {};
  return invalid_argument(
      "config.json: rope_parameters and rope_scaling say different things; remove the one that is wrong");
}

// A family whose layers are all of one kind may still list them.
void read_layer_types(ConfigFields& fields, const ModelConfig& config) {
  const std::vector<std::string> types = fields.texts("layer_types");
  if (!types.empty() && std::ssize(types) != config.layers) {
    fields.fail(
        "layer_types has " + std::to_string(types.size()) + " entries for " + std::to_string(config.layers) + " layers",
        0);
  }
  for (const std::string& type : types) {
    if (type != "full_attention")
      fields.fail("layer type '" + type + "' is not supported; supported is full_attention", 0);
  }
}

// Heads that are none of a language model, and attention that looks ahead.
Status refuse_other_tasks(ConfigFields& fields) {
  for (const std::string& name : fields.texts("architectures")) {
    for (const char* task : {"Classification", "QuestionAnswering", "RewardModel"}) {
      if (name.ends_with(task))
        return unsupported("architecture '" + name + "' is not supported: it is no language model");
    }
  }
  if (!fields.flag("is_causal", true) || fields.flag("use_bidirectional_attention", false))
    return unsupported("attention that looks ahead (is_causal, use_bidirectional_attention) is not supported");
  return {};
}

// Far more than any model has: a number that was mistyped is refused before anything of its size is made.
constexpr int64_t kMostLayers = 10'000, kMostHeads = 100'000;

void read_sizes(ConfigFields& fields, const DecoderDefaults& defaults, ModelConfig& config) {
  config.vocab_size = fields.positive("vocab_size");
  config.hidden_size = fields.positive("hidden_size");
  config.intermediate_size = fields.positive("intermediate_size");
  config.layers = fields.positive("num_hidden_layers", {}, kMostLayers);
  config.heads = fields.positive("num_attention_heads", {}, kMostHeads);
  config.kv_heads = fields.positive("num_key_value_heads", config.heads, kMostHeads);
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
  LATHE_TRY(refuse_other_tasks(fields));
  if (fields.flag("use_sliding_window", false))
    return unsupported("sliding-window attention (use_sliding_window) is not supported");
  const std::string activation = fields.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish")  // one function, two names
    return unsupported("hidden_act '" + activation + "' is not supported; supported is silu");
  read_sizes(fields, defaults, config);
  if (!defaults.mixed_layers) read_layer_types(fields, config);
  if (fields.error()) return *fields.error();
  return read_rope(fields, defaults, config);
}

void read_attention_bias(ConfigFields& fields, ModelConfig& config) {
  if (fields.flag("attention_bias", false)) config.qkv_bias = config.output_bias = true;
}

}  // namespace lathe::model
