#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "model/config_fields.h"
#include "model/families/decoder.h"
#include "model/families/family.h"

namespace lathe::model {
namespace {

using Json = nlohmann::json;

Result<Json> parse_object(std::string_view text, const char* name) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::exception& e) {
    return invalid_argument(std::string(name) + " is not JSON: " + e.what());
  }
  if (!json.is_object()) return invalid_argument(std::string(name) + " is not a JSON object");
  return json;
}

void add_missing(std::vector<int64_t>& to, const std::vector<int64_t>& from) {
  for (const int64_t id : from) {
    if (std::find(to.begin(), to.end(), id) == to.end()) to.push_back(id);
  }
}

// The family of a config.json, and whether it is a wrapper around it.
struct Found {
  const Family* family = nullptr;
  bool wrapped = false;
};

Result<Found> find_family(ConfigFields& fields) {
  const std::string type = fields.text("model_type", "");
  std::string known;
  for (const Family& family : families()) {
    if (type == family.model_type) return Found{&family, false};
    if (!family.wrapper_type.empty() && type == family.wrapper_type) return Found{&family, true};
    known.append(known.empty() ? "" : ", ").append(family.model_type);
    if (!family.wrapper_type.empty()) known.append(", ").append(family.wrapper_type);
  }
  return unsupported("model_type '" + type + "' is not supported; supported are " + known);
}

// The model in config.json, or the text model in a wrapper around text and vision: that is what is served and taught.
Result<ModelConfig> read_model(const Json& json) {
  ConfigFields outer(json);
  const Found found = LATHE_TRY(find_family(outer));
  ModelConfig config;
  if (!found.wrapped) {
    LATHE_TRY(found.family->read(outer, config));
    config.eos_tokens = outer.ids("eos_token_id");
    if (outer.error()) return *outer.error();
    return config;
  }
  if (outer.error()) return *outer.error();
  if (!outer.has("text_config")) return invalid_argument("config.json has no text_config");
  if (outer.has("quantization_config")) return quantised(outer);
  ConfigFields text(outer.object("text_config"), "config.json: text_config");
  if (const std::string type = text.text("model_type", ""); type != found.family->model_type) {
    return unsupported("text_config: model_type '" + type + "' is not supported in '" +
                       std::string(found.family->wrapper_type) + "'; supported is " +
                       std::string(found.family->model_type));
  }
  LATHE_TRY(found.family->read(text, config));
  config.prefix = found.family->wrapper_prefix;
  config.eos_tokens = text.ids("eos_token_id");
  if (outer.flag("tie_word_embeddings", false)) config.tie_embeddings = true;
  if (outer.error()) return *outer.error();
  if (text.error()) return *text.error();
  return config;
}

}  // namespace

bool ModelConfig::has_delta() const {
  return std::find(mixers.begin(), mixers.end(), Mixer::kDelta) != mixers.end();
}

double ModelConfig::score_scale() const {
  return attention_scale > 0 ? attention_scale : 1 / std::sqrt(static_cast<double>(head_dim));
}

Result<ModelConfig> ModelConfig::parse(std::string_view config_json, std::string_view generation_config_json) {
  const Json json = LATHE_TRY(parse_object(config_json, "config.json"));
  ModelConfig config = LATHE_TRY(read_model(json));
  if (config.heads % config.kv_heads != 0) {
    return invalid_argument("config.json: num_attention_heads (" + std::to_string(config.heads) +
                            ") is not a multiple of num_key_value_heads (" + std::to_string(config.kv_heads) + ")");
  }
  if (!generation_config_json.empty()) {
    const Json generation = LATHE_TRY(parse_object(generation_config_json, "generation_config.json"));
    ConfigFields generation_fields(generation, "generation_config.json");
    add_missing(config.eos_tokens, generation_fields.ids("eos_token_id"));
    if (generation_fields.error()) return *generation_fields.error();
  }
  return config;
}

}  // namespace lathe::model
