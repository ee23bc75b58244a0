#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace lathe::model {
namespace {

using Json = nlohmann::json;

// Reads typed fields and remembers the first thing that was wrong, so that parse() reads as a list of fields.
class Fields {
 public:
  explicit Fields(const Json& json) : json_(json) {}

  bool has(const char* name) const { return json_.contains(name) && !json_.at(name).is_null(); }

  int64_t positive(const char* name, std::optional<int64_t> otherwise = {}) {
    if (!has(name) && otherwise) return *otherwise;
    if (!has(name)) return fail(std::string("config.json has no ") + name, int64_t{1});
    const Json& value = json_.at(name);
    if (!value.is_number_integer() || value.get<int64_t>() <= 0 || value.get<int64_t>() > (int64_t{1} << 31)) {
      return fail(std::string("config.json: ") + name + " must be a positive integer, not " + value.dump(), int64_t{1});
    }
    return value.get<int64_t>();
  }

  double number(const char* name, double otherwise) {
    if (!has(name)) return otherwise;
    const Json& value = json_.at(name);
    if (!value.is_number() || !std::isfinite(value.get<double>()) || value.get<double>() <= 0) {
      return fail(std::string("config.json: ") + name + " must be a positive number, not " + value.dump(), otherwise);
    }
    return value.get<double>();
  }

  bool flag(const char* name, bool otherwise) {
    if (!has(name)) return otherwise;
    if (!json_.at(name).is_boolean())
      return fail(std::string("config.json: ") + name + " must be true or false", otherwise);
    return json_.at(name).get<bool>();
  }

  std::string text(const char* name, const std::string& otherwise) {
    if (!has(name)) return otherwise;
    if (!json_.at(name).is_string()) return fail(std::string("config.json: ") + name + " must be a string", otherwise);
    return json_.at(name).get<std::string>();
  }

  std::vector<int64_t> ids(const char* name) {
    std::vector<int64_t> out;
    if (!has(name)) return out;
    const Json& value = json_.at(name);
    for (const Json& entry : value.is_array() ? value : Json::array({value})) {
      if (!entry.is_number_integer())
        return fail(std::string("config.json: ") + name + " must be a token id or a list of them", out);
      out.push_back(entry.get<int64_t>());
    }
    return out;
  }

  std::vector<std::string> texts(const char* name) {
    std::vector<std::string> out;
    if (!has(name)) return out;
    const Json& value = json_.at(name);
    for (const Json& entry : value.is_array() ? value : Json::array({value})) {
      if (!entry.is_string()) return fail(std::string("config.json: ") + name + " must be a list of strings", out);
      out.push_back(entry.get<std::string>());
    }
    return out;
  }

  const Json& object(const char* name) {
    static const Json empty = Json::object();
    if (!has(name)) return empty;
    if (!json_.at(name).is_object())
      return fail<const Json&>(std::string("config.json: ") + name + " must be an object", empty);
    return json_.at(name);
  }

  template <class T>
  T fail(std::string message, T otherwise) {
    if (!error_) error_ = invalid_argument(std::move(message));
    return otherwise;
  }

  const std::optional<Error>& error() const { return error_; }

 private:
  const Json& json_;
  std::optional<Error> error_;
};

Result<Json> parse_object(std::string_view text, const char* name) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return invalid_argument(std::string(name) + " is not a JSON object");
  return json;
}

Error quantised(Fields& fields) {
  Fields how(fields.object("quantization_config"));
  return unsupported("the model is quantised (quantization_config, quant_method '" +
                     how.text("quant_method", "unknown") + "'); use the bf16 checkpoint it was made from");
}

Status read_architecture(Fields& fields, ModelConfig& config) {
  const std::string type = fields.text("model_type", "");
  if (type == "llama") {
    config.architecture = Architecture::kLlama;
  } else if (type == "qwen2") {
    config.architecture = Architecture::kQwen2;
    config.qkv_bias = true;
  } else if (type == "qwen3") {
    config.architecture = Architecture::kQwen3;
    config.qk_norm = true;
  } else if (type == "qwen3_5_text") {
    config.architecture = Architecture::kQwen3_5;
    config.qk_norm = config.attention_gate = true;
    config.norm = NormStyle::kZeroCentred;
  } else {
    return unsupported("model_type '" + type +
                       "' is not supported; supported are llama, qwen2, qwen3, qwen3_5 and qwen3_5_text");
  }
  if (fields.has("quantization_config")) return quantised(fields);
  if (fields.flag("use_sliding_window", false))
    return unsupported("sliding-window attention (use_sliding_window) is not supported");
  const std::string activation = fields.text("hidden_act", "silu");
  if (activation != "silu") return unsupported("hidden_act '" + activation + "' is not supported; supported is silu");
  return {};
}

// New files have rope_parameters; older ones rope_theta at the top and rope_scaling. rope_parameters wins.
Status read_rope(Fields& fields, ModelConfig& config) {
  const bool modern = fields.has("rope_parameters");
  Fields rope(fields.object(modern ? "rope_parameters" : "rope_scaling"));
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
  const bool partial = config.architecture == Architecture::kQwen3_5;
  const double factor =
      rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", partial ? 0.25 : 1));
  if (!partial && factor != 1) return unsupported("partial_rotary_factor is not supported for this architecture");
  if (factor > 1) return invalid_argument("config.json: partial_rotary_factor must be at most 1");
  config.rotary_dim = static_cast<int64_t>(static_cast<double>(config.head_dim) * factor);
  if (config.rotary_dim < 2 || config.rotary_dim % 2 != 0) {
    return invalid_argument("config.json: " + std::to_string(config.rotary_dim) +
                            " dimensions of a head would rotate; they must be even in number");
  }
  if (rope.error()) return *rope.error();
  return {};
}

// Layers are listed by type, or every full_attention_interval-th is an attention layer.
void read_mixers(Fields& fields, ModelConfig& config) {
  config.mixers.assign(config.layers, Mixer::kAttention);
  if (config.architecture != Architecture::kQwen3_5) return;
  const std::vector<std::string> types = fields.texts("layer_types");
  const int64_t interval = fields.positive("full_attention_interval", 4);
  if (!types.empty() && std::ssize(types) != config.layers) {
    fields.fail("config.json: layer_types has " + std::to_string(types.size()) + " entries for " +
                    std::to_string(config.layers) + " layers",
                0);
    return;
  }
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const bool full = types.empty() ? (layer + 1) % interval == 0 : types[layer] == "full_attention";
    config.mixers[layer] = full ? Mixer::kAttention : Mixer::kDelta;
    if (!full && !types.empty() && types[layer] != "linear_attention") {
      fields.fail("config.json: layer type '" + types[layer] +
                      "' is not supported; supported are full_attention and linear_attention",
                  0);
    }
  }
}

void read_delta(Fields& fields, ModelConfig& config) {
  if (!config.has_delta()) return;
  config.delta = {.key_heads = fields.positive("linear_num_key_heads", 16),
                  .value_heads = fields.positive("linear_num_value_heads", 32),
                  .key_dim = fields.positive("linear_key_head_dim", 128),
                  .value_dim = fields.positive("linear_value_head_dim", 128),
                  .kernel = fields.positive("linear_conv_kernel_dim", 4)};
  if (config.delta.value_heads % config.delta.key_heads != 0) {
    fields.fail("config.json: linear_num_value_heads (" + std::to_string(config.delta.value_heads) +
                    ") is not a multiple of linear_num_key_heads (" + std::to_string(config.delta.key_heads) + ")",
                0);
  }
  // The gated norm's activation where a file names it; sigmoid belongs to another family.
  const std::string gate = fields.text("output_gate_type", "swish");
  if (gate != "swish" && gate != "silu") {
    fields.fail("config.json: output_gate_type '" + gate + "' is not supported; supported is swish", 0);
  }
}

int64_t default_head_dim(const ModelConfig& config) {
  switch (config.architecture) {
    case Architecture::kQwen3:
      return 128;
    case Architecture::kQwen3_5:
      return 256;
    default:
      return std::max<int64_t>(1, config.hidden_size / config.heads);
  }
}

void read_sizes(Fields& fields, ModelConfig& config) {
  config.vocab_size = fields.positive("vocab_size");
  config.hidden_size = fields.positive("hidden_size");
  config.intermediate_size = fields.positive("intermediate_size");
  config.layers = fields.positive("num_hidden_layers");
  config.heads = fields.positive("num_attention_heads");
  config.kv_heads = fields.positive("num_key_value_heads", config.heads);
  config.head_dim = fields.positive("head_dim", default_head_dim(config));
  config.rms_norm_eps = fields.number("rms_norm_eps", 1e-6);
  config.max_positions = fields.positive("max_position_embeddings", 2048);
  config.tie_embeddings = fields.flag("tie_word_embeddings", false);
  if (config.architecture != Architecture::kQwen2 && fields.flag("attention_bias", false)) {
    config.qkv_bias = config.output_bias = true;
  }
  if (config.architecture == Architecture::kLlama) config.mlp_bias = fields.flag("mlp_bias", false);
  if (fields.has("pad_token_id")) config.pad_token = fields.ids("pad_token_id").front();
  if (fields.has("bos_token_id")) config.bos_token = fields.ids("bos_token_id").front();
}

void add_missing(std::vector<int64_t>& to, const std::vector<int64_t>& from) {
  for (const int64_t id : from) {
    if (std::find(to.begin(), to.end(), id) == to.end()) to.push_back(id);
  }
}

}  // namespace

bool ModelConfig::has_delta() const {
  return std::find(mixers.begin(), mixers.end(), Mixer::kDelta) != mixers.end();
}

Result<ModelConfig> ModelConfig::parse(std::string_view config_json, std::string_view generation_config_json) {
  const Json json = LATHE_TRY(parse_object(config_json, "config.json"));
  ModelConfig config;
  // qwen3_5 is a wrapper around text and vision; what is served and taught is the text model in it.
  Fields outer(json);
  const bool wrapper = outer.text("model_type", "") == "qwen3_5";
  if (wrapper) {
    if (!outer.has("text_config")) return invalid_argument("config.json has no text_config");
    if (outer.has("quantization_config")) return quantised(outer);
    config.prefix = "model.language_model.";
  }
  const Json& text_json = wrapper ? outer.object("text_config") : json;
  Fields fields(text_json);
  LATHE_TRY(read_architecture(fields, config));
  read_sizes(fields, config);
  if (wrapper && outer.flag("tie_word_embeddings", false)) config.tie_embeddings = true;
  if (fields.error()) return *fields.error();
  LATHE_TRY(read_rope(fields, config));
  read_mixers(fields, config);
  read_delta(fields, config);
  if (outer.error()) return *outer.error();
  config.eos_tokens = fields.ids("eos_token_id");
  if (fields.error()) return *fields.error();
  if (config.heads % config.kv_heads != 0) {
    return invalid_argument("config.json: num_attention_heads (" + std::to_string(config.heads) +
                            ") is not a multiple of num_key_value_heads (" + std::to_string(config.kv_heads) + ")");
  }
  if (!generation_config_json.empty()) {
    const Json generation = LATHE_TRY(parse_object(generation_config_json, "generation_config.json"));
    Fields generation_fields(generation);
    add_missing(config.eos_tokens, generation_fields.ids("eos_token_id"));
    if (generation_fields.error()) return *generation_fields.error();
  }
  return config;
}

}  // namespace lathe::model
