// Granite 3: a llama whose embeddings, attention scores, residual branches and logits are scaled.
#include "model/families/decoder.h"
#include "model/families/family.h"

namespace lathe::model {

Status read_granite(ConfigFields& fields, ModelConfig& config) {
  LATHE_TRY(read_decoder(fields, {}, config));
  read_attention_bias(fields, config);
  config.mlp_bias = fields.flag("mlp_bias", false);
  config.embedding_multiplier = fields.number("embedding_multiplier", 1);
  config.attention_scale = fields.number("attention_multiplier", 1);
  config.residual_multiplier = fields.number("residual_multiplier", 1);
  config.logits_divisor = fields.number("logits_scaling", 1);
  return {};
}

}  // namespace lathe::model
