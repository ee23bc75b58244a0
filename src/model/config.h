// ModelConfig: what config.json says, in one struct for all families. Sizes and facts come from here: nothing outside
// model/families knows which family a model is.
//
// Threads: a value. Source of the fields: transformers' configuration files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lathe::model {

// What mixes the tokens of a layer.
enum class Mixer { kAttention, kDelta };

// Rescaling of rotary frequencies, rope_type "llama3" (Llama 3.1 and later).
struct Llama3Rope {
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  double original_max_positions = 8192;
  bool operator==(const Llama3Rope&) const = default;
};

// How a norm applies its weight to n = x / sqrt(mean(x²) + eps); c rounds to the compute dtype.
enum class NormStyle {
  kPlain,        // w * c(n): rounded before the weight
  kZeroCentred,  // c((1 + w) * n): rounded after it
};

// Gated DeltaNet layers (qwen3_5): value head h reads the query and key of head h / (value_heads / key_heads).
struct DeltaConfig {
  int64_t key_heads = 0;
  int64_t value_heads = 0;
  int64_t key_dim = 0;    // of one head
  int64_t value_dim = 0;  // of one head
  int64_t kernel = 0;     // of the causal convolution over time

  int64_t keys() const { return key_heads * key_dim; }
  int64_t values() const { return value_heads * value_dim; }
  int64_t channels() const { return 2 * keys() + values(); }  // that the convolution sees: queries, keys, values
  bool operator==(const DeltaConfig&) const = default;
};

struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;       // query heads
  int64_t kv_heads = 0;    // key and value heads; divides heads
  int64_t head_dim = 0;    // heads * head_dim need not be hidden_size
  int64_t rotary_dim = 0;  // so many dimensions of a head rotate, the others pass; 0: all rotate
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<Llama3Rope> llama3_rope;
  int64_t max_positions = 0;
  bool tie_embeddings = false;
  bool qkv_bias = false;
  bool output_bias = false;  // of o_proj
  bool mlp_bias = false;
  bool qk_norm = false;
  bool attention_gate = false;  // q_proj holds a query and a gate per head; sigmoid(gate) scales what attention gives
  NormStyle norm = NormStyle::kPlain;
  double embedding_multiplier = 1;  // of what is looked up, before the first layer
  double residual_multiplier = 1;   // of what a mixer or an MLP adds
  double attention_scale = 0;       // of attention's scores; 0: 1 / sqrt(head_dim)
  double logits_divisor = 1;        // of the head's products
  std::vector<Mixer> mixers;        // one per layer; none: all kAttention
  DeltaConfig delta;                // of the layers that are kDelta
  std::string prefix = "model.";    // of the tensors of the text model; the head is always lm_head.weight
  // transformers builds the embedding with padding_idx = pad_token_id: that row gets no gradient from the lookup.
  // Kept, so that a fine-tune here is the fine-tune they know.
  std::optional<int64_t> pad_token;
  std::optional<int64_t> bos_token;
  std::vector<int64_t> eos_tokens;  // of config.json and generation_config.json together

  Mixer mixer(int64_t layer) const { return mixers.empty() ? Mixer::kAttention : mixers[layer]; }
  bool has_delta() const;      // whether any layer is kDelta
  double score_scale() const;  // attention_scale, or what stands in for it

  // Unsupported families, rope types, activations, sliding windows and quantisation are refused by name.
  static Result<ModelConfig> parse(std::string_view config_json, std::string_view generation_config_json = "");
};

}  // namespace lathe::model
