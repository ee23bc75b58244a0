// Fuzz target: config.json and, after a byte of zero, generation_config.json. Whatever the bytes are, they are refused
// by a message, or every size that the model is made by is one that can be made.
#include <cmath>
#include <string_view>

#include "model/config.h"

namespace {

using namespace lathe;

void check(const model::ModelConfig& c) {
  LATHE_CHECK(c.vocab_size > 0 && c.hidden_size > 0 && c.intermediate_size > 0 && c.layers > 0 && c.head_dim > 0);
  LATHE_CHECK(c.kv_heads > 0 && c.heads % c.kv_heads == 0);
  LATHE_CHECK(c.rotary_dim >= 2 && c.rotary_dim % 2 == 0 && c.rotary_dim <= c.head_dim);
  LATHE_CHECK(c.max_positions > 0);
  for (const double number :
       {c.rope_theta, c.rms_norm_eps, c.embedding_multiplier, c.residual_multiplier, c.logits_divisor, c.score_scale()})
    LATHE_CHECK(std::isfinite(number) && number > 0);
  if (c.llama3_rope) LATHE_CHECK(c.llama3_rope->high_freq_factor > c.llama3_rope->low_freq_factor);
  LATHE_CHECK(c.mixers.empty() || static_cast<int64_t>(c.mixers.size()) == c.layers);
  if (c.has_delta()) LATHE_CHECK(c.delta.key_heads > 0 && c.delta.value_heads % c.delta.key_heads == 0);
  for (const int64_t id : c.eos_tokens) LATHE_CHECK(id >= 0);
  LATHE_CHECK(c.pad_token.value_or(0) >= 0 && c.bos_token.value_or(0) >= 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  const size_t end = std::min(text.find('\0'), size);
  const auto config = model::ModelConfig::parse(text.substr(0, end), text.substr(std::min(end + 1, size)));
  if (config.ok()) {
    check(*config);
  } else {
    LATHE_CHECK(!config.error().message.empty());
  }
  return 0;
}
