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

TEST(Config, RefusesByName) {
  EXPECT_NE(refusal(R"("rope_scaling":{"type":"yarn","factor":4})").find("yarn"), std::string::npos);
  EXPECT_NE(refusal(R"("quantization_config":{"bits":4})").find("quantised"), std::string::npos);
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

}  // namespace
}  // namespace lathe::model
