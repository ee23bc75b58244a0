// ModelConfig: what config.json says, in one struct for all architectures. Sizes come from here, never from constants.
//
// Threads: a value. Source of the fields: transformers' configuration files of llama, qwen2 and qwen3.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lathe::model {

enum class Architecture { kLlama, kQwen2, kQwen3 };

// Rescaling of rotary frequencies, rope_type "llama3" (Llama 3.1 and later).
struct Llama3Rope {
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  double original_max_positions = 8192;
};

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;     // query heads
  int64_t kv_heads = 0;  // key and value heads; divides heads
  int64_t head_dim = 0;  // heads * head_dim need not be hidden_size
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<Llama3Rope> llama3_rope;
  int64_t max_positions = 0;
  bool tie_embeddings = false;
  bool qkv_bias = false;
  bool output_bias = false;  // of o_proj
  bool mlp_bias = false;
  bool qk_norm = false;
  // transformers builds the embedding with padding_idx = pad_token_id: that row gets no gradient from the look-up.
  // Kept, so that a fine-tune here is the fine-tune they know.
  std::optional<int64_t> pad_token;
  std::optional<int64_t> bos_token;
  std::vector<int64_t> eos_tokens;  // of config.json and generation_config.json together

  // Unsupported architectures, rope types, activations, sliding windows and quantisation are refused by name.
  static Result<ModelConfig> parse(std::string_view config_json, std::string_view generation_config_json = "");
};

}  // namespace lathe::model
