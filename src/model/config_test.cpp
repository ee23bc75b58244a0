#include "model/config.h"

#include <gtest/gtest.h>

#include <string>

namespace lathe::model {
namespace {

constexpr const char* kBase = R"({"model_type":"llama","vocab_size":100,"hidden_size":32,"intermediate_size":64,
  "num_hidden_layers":2,"num_attention_heads":4,"eos_token_id":[2,3]EXTRA})";

std::string with(const std::string& extra) {
  std::string text = kBase;
  return text.replace(text.find("EXTRA"), 5, extra.empty() ? "" : "," + extra);
}

std::string refusal(const std::string& extra) {
  const auto config = ModelConfig::parse(with(extra));
  return config.ok() ? "accepted" : config.error().message;
}

TEST(Config, DefaultsAreThoseOfTransformers) {
  const auto c = ModelConfig::parse(with(""));
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->kv_heads, 4);
  EXPECT_EQ(c->head_dim, 8);
  EXPECT_EQ(c->rope_theta, 10000);
  EXPECT_EQ(c->rms_norm_eps, 1e-6);
  EXPECT_FALSE(c->tie_embeddings);
  EXPECT_FALSE(c->pad_token.has_value());
  EXPECT_EQ(c->eos_tokens, (std::vector<int64_t>{2, 3}));
}

TEST(Config, ReadsOldAndNewRopeFields) {
  EXPECT_EQ(ModelConfig::parse(with(R"("rope_theta":5e5)"))->rope_theta, 5e5);
  EXPECT_EQ(ModelConfig::parse(with(R"("rope_theta":1,"rope_parameters":{"rope_type":"default","rope_theta":7})"))
                ->rope_theta,
            7);
  const auto llama3 = ModelConfig::parse(with(
      R"("rope_scaling":{"rope_type":"llama3","factor":32,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":8192})"));
  ASSERT_TRUE(llama3.ok() && llama3->llama3_rope);
  EXPECT_EQ(llama3->llama3_rope->factor, 32);
}

// Every nesting that transformers 4 and 5 write, and what each means there.
TEST(Rope, IsReadInEveryNesting) {
  struct Case {
    const char* json;
    double theta;
    bool llama3;
  };
  const std::vector<Case> cases = {
      {R"("rope_theta":7)", 7, false},
      {R"("rope_theta":7,"rope_scaling":null)", 7, false},
      {R"("rope_theta":7,"rope_scaling":{})", 7, false},
      {R"("rope_theta":7,"rope_scaling":{"type":"default"})", 7, false},
      {R"("rope_parameters":{"rope_theta":7})", 7, false},
      {R"("rope_parameters":{"rope_theta":7,"rope_type":"default"},"rope_theta":1)", 7, false},
      {R"("rope_parameters":{"rope_type":"default"},"rope_theta":7)", 7, false},
      {R"("rope_parameters":{"rope_theta":7,"rope_type":"default","mrope_section":[1,1,2],"mrope_interleaved":true})",
       7, false},
      {R"("rope_parameters":{"full_attention":{"rope_theta":7,"rope_type":"default"}})", 7, false},
      {R"("rope_parameters":{"full_attention":{"rope_theta":7},"sliding_attention":{"rope_theta":1},"rope_theta":10000})",
       7, false},
      {R"("rope_parameters":{"full_attention":{"rope_theta":7},"sliding_attention":null})", 7, false},
      {R"("rope_parameters":{"full_attention":{"rope_type":"llama3","rope_theta":7,"factor":8,"low_freq_factor":1,"high_freq_factor":4}})",
       7, true},
      {R"("rope_scaling":{"full_attention":{"rope_theta":7}})", 7, false},
      {R"("rope_theta":7,"rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4})", 7,
       true},
      {R"("rope_parameters":{"rope_theta":7},"rope_scaling":{"rope_type":"default","rope_theta":7})", 7, false},
      {R"("rope_parameters":{},"rope_scaling":{"rope_theta":7})", 7, false},
  };
  for (const Case& one : cases) {
    const auto c = ModelConfig::parse(with(one.json));
    ASSERT_TRUE(c.ok()) << one.json << ": " << c.error().message;
    EXPECT_EQ(c->rope_theta, one.theta) << one.json;
    EXPECT_EQ(c->llama3_rope.has_value(), one.llama3) << one.json;
  }
}

TEST(Rope, IsRefusedByNameWhereItCannotBeRead) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {R"("rope_scaling":{"type":"linear","factor":2})", "'linear'"},
      {R"("rope_scaling":{"rope_type":"dynamic","factor":2})", "'dynamic'"},
      {R"("rope_parameters":{"rope_theta":7,"factor":2})", "factor"},
      {R"("rope_scaling":{"factor":2})", "factor"},
      {R"("rope_parameters":{"rope_theta":7},"rope_scaling":{"type":"yarn","factor":4})", "yarn"},
      {R"("rope_parameters":{"rope_theta":7},"rope_scaling":{"rope_theta":8})", "rope_scaling say different things"},
      {R"("rope_parameters":{"full_attention":{"rope_theta":7,"rope_type":"yarn"}})", "yarn"},
      {R"("rope_parameters":{"full_attention":null,"sliding_attention":{"rope_theta":7}})", "no full_attention"},
      {R"("rope_parameters":{"full_attention":7})", "rope_parameters: full_attention must be an object"},
      {R"("rope_parameters":{"rope_theta":"large"})",
       "rope_parameters: rope_theta must be a positive number, not \"large\""},
      {R"("rope_parameters":[7])", "rope_parameters must be an object"},
      {R"("rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":1})", "needs a high_freq_factor"},
      {R"("rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4})", "greater than"},
      {R"("rope_scaling":{"rope_type":["llama3"]})", "rope_type must be a string"},
  };
  for (const auto& [json, named] : cases)
    EXPECT_NE(refusal(json).find(named), std::string::npos) << json << ": " << refusal(json);
}

TEST(Rope, TakesTheTrainedLengthWhereTransformersDoes) {
  const std::string scaling = R"({"rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4)";
  const auto trained = [&](const std::string& more) {
    return ModelConfig::parse(with(more)).value().llama3_rope->original_max_positions;
  };
  EXPECT_EQ(trained(R"("max_position_embeddings":4096,"rope_scaling":)" + scaling + "}"), 4096);
  EXPECT_EQ(trained(R"("rope_scaling":)" + scaling + R"(,"original_max_position_embeddings":512})"), 512);
  EXPECT_EQ(trained(R"("original_max_position_embeddings":256,"rope_scaling":)" + scaling +
                    R"(,"original_max_position_embeddings":512})"),
            256);
}

TEST(Config, MergesTheStopTokensOfGenerationConfig) {
  const auto c = ModelConfig::parse(with(""), R"({"eos_token_id":[3,9]})");
  ASSERT_TRUE(c.ok());
  EXPECT_EQ(c->eos_tokens, (std::vector<int64_t>{2, 3, 9}));
}

constexpr const char* kHybrid = R"("model_type":"qwen3_5_text","vocab_size":100,"hidden_size":32,"intermediate_size":64,
  "num_hidden_layers":4,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":32,"linear_num_key_heads":2,
  "linear_num_value_heads":6,"linear_key_head_dim":16,"linear_value_head_dim":8)";

Result<ModelConfig> hybrid(const std::string& extra) {
  std::string json = "{";
  json.append(kHybrid).append(extra.empty() ? "" : ",").append(extra).append("}");
  return ModelConfig::parse(json);
}

TEST(Config, ReadsHybrids) {
  const auto c = hybrid("");
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->mixers, (std::vector<Mixer>{Mixer::kDelta, Mixer::kDelta, Mixer::kDelta, Mixer::kAttention}));
  EXPECT_EQ(c->delta, (DeltaConfig{.key_heads = 2, .value_heads = 6, .key_dim = 16, .value_dim = 8, .kernel = 4}));
  EXPECT_EQ(c->delta.channels(), 2 * 32 + 48);
  EXPECT_EQ(c->rotary_dim, 8);
  EXPECT_TRUE(c->attention_gate && c->qk_norm);
  EXPECT_EQ(c->norm, NormStyle::kZeroCentred);
  EXPECT_EQ(hybrid(R"("rope_parameters":{"partial_rotary_factor":0.5})")->rotary_dim, 16);
  EXPECT_EQ(hybrid(R"("full_attention_interval":2)")->mixers[1], Mixer::kAttention);
  const auto listed =
      hybrid(R"("layer_types":["full_attention","full_attention","linear_attention","full_attention"])");
  EXPECT_EQ(listed->mixers[2], Mixer::kDelta);
  EXPECT_EQ(listed->mixers[3], Mixer::kAttention);
}

TEST(Config, FindsTheTextModelInItsWrapper) {
  const auto c = ModelConfig::parse(R"({"model_type":"qwen3_5","tie_word_embeddings":true,"text_config":{)" +
                                    std::string(kHybrid) + R"(},"vision_config":{"depth":2}})");
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->prefix, "model.language_model.");
  EXPECT_TRUE(c->tie_embeddings);
  EXPECT_EQ(c->layers, 4);
}

TEST(Config, RefusesHybridsByName) {
  const auto refused = [](const std::string& extra) {
    const auto c = hybrid(extra);
    return c.ok() ? "accepted" : c.error().message;
  };
  EXPECT_NE(refused(R"("layer_types":["full_attention"])").find("1 entries for 4 layers"), std::string::npos);
  EXPECT_NE(refused(R"("layer_types":["a","a","a","a"])").find("layer type 'a'"), std::string::npos);
  EXPECT_NE(refused(R"("linear_num_key_heads":4)").find("multiple of linear_num_key_heads"), std::string::npos);
  EXPECT_NE(refused(R"("output_gate_type":"sigmoid")").find("sigmoid"), std::string::npos);
  EXPECT_NE(refused(R"("partial_rotary_factor":0.1)").find("even"), std::string::npos);
  EXPECT_NE(refused(R"("partial_rotary_factor":2)").find("partial_rotary_factor"), std::string::npos);
  EXPECT_NE(ModelConfig::parse(R"({"model_type":"qwen3_5"})").error().message.find("text_config"), std::string::npos);
}

TEST(Config, RefusesByName) {
  EXPECT_NE(refusal(R"("rope_scaling":{"type":"yarn","factor":4})").find("yarn"), std::string::npos);
  EXPECT_NE(refusal(R"("quantization_config":{"bits":4})").find("quantised"), std::string::npos);
  EXPECT_NE(refusal(R"("quantization_config":{"quant_method":"gptq"})").find("'gptq'"), std::string::npos);
  EXPECT_NE(refusal(R"("hidden_act":"gelu")").find("gelu"), std::string::npos);
  EXPECT_NE(refusal(R"("use_sliding_window":true)").find("sliding"), std::string::npos);
  EXPECT_NE(refusal(R"("num_key_value_heads":3)").find("multiple"), std::string::npos);
  EXPECT_NE(refusal(R"("head_dim":7)").find("even"), std::string::npos);
  EXPECT_NE(refusal(R"("rms_norm_eps":"small")").find("rms_norm_eps"), std::string::npos);
  EXPECT_NE(refusal(R"("max_position_embeddings":-1)").find("max_position_embeddings"), std::string::npos);
  EXPECT_NE(ModelConfig::parse(R"({"model_type":"mamba"})").error().message.find("mamba"), std::string::npos);
  EXPECT_NE(ModelConfig::parse(R"({"model_type":"llama"})").error().message.find("vocab_size"), std::string::npos);
  EXPECT_FALSE(ModelConfig::parse("[1]").ok());
  // Python writes these, and no JSON has them.
  EXPECT_NE(refusal(R"("rope_theta":Infinity)").find("config.json is not JSON"), std::string::npos);
  EXPECT_NE(refusal(R"("rms_norm_eps":NaN)").find("last read: '\"rms_norm_eps\":N'"), std::string::npos);
}

// Any value in any field, in place of what belongs there: read or refused, and the file named that it is in.
TEST(Config, ValuesOfOtherKindsAreRefusedByFieldAndFile) {
  const std::vector<std::string> values = {
      "null", "true",   "-1",    "0",       "1e308", "1.5",      "18446744073709551615", "\"text\"", "\"\\ud800\"",
      "[]",   "[null]", "[[1]]", "[\"a\"]", "{}",    "{\"a\":1}"};
  const std::vector<std::string> fields = {"model_type",
                                           "vocab_size",
                                           "hidden_size",
                                           "intermediate_size",
                                           "num_hidden_layers",
                                           "num_attention_heads",
                                           "num_key_value_heads",
                                           "head_dim",
                                           "max_position_embeddings",
                                           "rms_norm_eps",
                                           "rope_theta",
                                           "rope_scaling",
                                           "rope_parameters",
                                           "partial_rotary_factor",
                                           "tie_word_embeddings",
                                           "hidden_act",
                                           "attention_bias",
                                           "mlp_bias",
                                           "layer_types",
                                           "architectures",
                                           "use_sliding_window",
                                           "quantization_config",
                                           "pad_token_id",
                                           "bos_token_id",
                                           "eos_token_id",
                                           "is_causal",
                                           "text_config"};
  int64_t refused = 0;
  for (const std::string& field : fields) {
    for (const std::string& value : values) {
      const auto c = ModelConfig::parse(with("\"" + field + "\":" + value));
      if (c.ok()) continue;
      ++refused;
      EXPECT_TRUE(c.error().message.find(field) != std::string::npos ||
                  c.error().message.find("is not JSON") != std::string::npos ||
                  c.error().message.find("dimensions of a head") != std::string::npos ||
                  c.error().message.find("quantised") != std::string::npos ||
                  c.error().message.find("architecture") != std::string::npos)
          << field << "=" << value << ": " << c.error().message;
    }
  }
  EXPECT_GT(refused, 200);
  const auto generation = ModelConfig::parse(with(""), R"({"eos_token_id":"2"})");
  ASSERT_FALSE(generation.ok());
  EXPECT_EQ(generation.error().message,
            "generation_config.json: eos_token_id must be a token id or a list of them, not \"2\"");
}

TEST(Config, SizesThatNoModelHasAreRefusedBeforeAnythingOfThemIsMade) {
  EXPECT_NE(refusal(R"("num_hidden_layers":2147483648)").find("num_hidden_layers"), std::string::npos);
  EXPECT_NE(refusal(R"("num_attention_heads":2147483648)").find("num_attention_heads"), std::string::npos);
}

TEST(Config, MinusOneNamesNoToken) {
  const auto c = ModelConfig::parse(with(R"("pad_token_id":-1)"));
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_FALSE(c->pad_token.has_value());
}

TEST(Config, LayersAndTasksOfOtherKindsAreRefusedByName) {
  EXPECT_EQ(refusal(R"("layer_types":["full_attention","full_attention"])"), "accepted");
  EXPECT_NE(refusal(R"("layer_types":["full_attention","sliding_attention"])").find("sliding_attention"),
            std::string::npos);
  EXPECT_NE(refusal(R"("layer_types":["full_attention"])").find("1 entries for 2 layers"), std::string::npos);
  EXPECT_NE(refusal(R"("architectures":["LlamaForSequenceClassification"])").find("LlamaForSequenceClassification"),
            std::string::npos);
  EXPECT_NE(refusal(R"("is_causal":false)").find("is_causal"), std::string::npos);
  EXPECT_EQ(refusal(R"("hidden_act":"swish")"), "accepted");
}

TEST(Config, ReadsTheMultipliersOfGranite) {
  const auto c = ModelConfig::parse(R"({"model_type":"granite","vocab_size":100,"hidden_size":32,"intermediate_size":64,
    "num_hidden_layers":2,"num_attention_heads":4,"embedding_multiplier":12,"attention_multiplier":0.015625,
    "residual_multiplier":0.22,"logits_scaling":16})");
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->embedding_multiplier, 12);
  EXPECT_EQ(c->score_scale(), 0.015625);
  EXPECT_EQ(c->residual_multiplier, 0.22);
  EXPECT_EQ(c->logits_divisor, 16);
}

TEST(Config, AnEmptyListOfTokensNamesNone) {
  const auto c = ModelConfig::parse(with(R"("pad_token_id":[],"bos_token_id":[])"));
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_FALSE(c->pad_token.has_value());
  EXPECT_FALSE(c->bos_token.has_value());
}

TEST(Config, TheTextModelOfAWrapperMustBeItsOwn) {
  const auto c = ModelConfig::parse(R"({"model_type":"qwen3_5","text_config":{"model_type":"llama"}})");
  ASSERT_FALSE(c.ok());
  EXPECT_NE(c.error().message.find("qwen3_5_text"), std::string::npos) << c.error().message;
}

}  // namespace
}  // namespace lathe::model
