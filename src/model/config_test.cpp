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
  EXPECT_FALSE(ModelConfig::parse("{").ok());
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
