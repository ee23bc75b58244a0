#include "model/compare.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

namespace lathe::model {
namespace {

using Json = nlohmann::json;

bool says_nothing_of_the_model(std::string_view field) {
  constexpr std::array<std::string_view, 17> kFields = {"_name_or_path",
                                                        "_attn_implementation",
                                                        "transformers_version",
                                                        "torch_dtype",
                                                        "dtype",
                                                        "use_cache",
                                                        "bos_token_id",
                                                        "eos_token_id",
                                                        "pad_token_id",
                                                        "architectures",
                                                        "attention_dropout",
                                                        "initializer_range",
                                                        "auto_map",
                                                        "max_position_embeddings",
                                                        "return_dict",
                                                        "output_attentions",
                                                        "output_hidden_states"};
  return std::find(kFields.begin(), kFields.end(), field) != kFields.end();
}

std::vector<std::string> differing_fields(const Json& a, const Json& b) {
  std::vector<std::string> out;
  for (const auto& [name, value] : a.items()) {
    if (!says_nothing_of_the_model(name) && b.contains(name) && b[name] != value) out.push_back(name);
  }
  return out;
}

}  // namespace

std::vector<std::string> differences(const ModelConfig& a, const ModelConfig& b) {
  std::vector<std::string> out;
  const auto compare = [&](const char* name, const auto& x, const auto& y) {
    if (!(x == y)) out.push_back(name);
  };
  compare("vocab_size", a.vocab_size, b.vocab_size);
  compare("hidden_size", a.hidden_size, b.hidden_size);
  compare("intermediate_size", a.intermediate_size, b.intermediate_size);
  compare("num_hidden_layers", a.layers, b.layers);
  compare("num_attention_heads", a.heads, b.heads);
  compare("num_key_value_heads", a.kv_heads, b.kv_heads);
  compare("head_dim", a.head_dim, b.head_dim);
  compare("partial_rotary_factor", a.rotary_dim, b.rotary_dim);
  compare("rms_norm_eps", a.rms_norm_eps, b.rms_norm_eps);
  compare("rope_theta", a.rope_theta, b.rope_theta);
  compare("rope_scaling", a.llama3_rope, b.llama3_rope);
  compare("tie_word_embeddings", a.tie_embeddings, b.tie_embeddings);
  compare("attention_bias", std::pair(a.qkv_bias, a.output_bias), std::pair(b.qkv_bias, b.output_bias));
  compare("mlp_bias", a.mlp_bias, b.mlp_bias);
  compare("model_type", std::tuple(a.qk_norm, a.attention_gate, a.norm, a.prefix),
          std::tuple(b.qk_norm, b.attention_gate, b.norm, b.prefix));
  compare("embedding_multiplier", a.embedding_multiplier, b.embedding_multiplier);
  compare("residual_multiplier", a.residual_multiplier, b.residual_multiplier);
  compare("attention_multiplier", a.score_scale(), b.score_scale());
  compare("logits_scaling", a.logits_divisor, b.logits_divisor);
  compare("layer_types", a.mixers, b.mixers);
  compare("linear_attention", a.delta, b.delta);
  return out;
}

Result<std::vector<std::string>> differences(std::string_view config_json, std::string_view other_json) {
  const auto a = ModelConfig::parse(config_json), b = ModelConfig::parse(other_json);
  if (a.ok() && b.ok()) return differences(*a, *b);
  const Json one = Json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  const Json other = Json::parse(other_json, nullptr, /*allow_exceptions=*/false);
  if (!one.is_object() || !other.is_object()) return invalid_argument("config.json is not a JSON object");
  return differing_fields(one, other);
}

}  // namespace lathe::model
