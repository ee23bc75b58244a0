// Qwen3: queries and keys are normed head by head.
#include "model/families/decoder.h"
#include "model/families/family.h"

namespace lathe::model {

Status read_qwen3(ConfigFields& fields, ModelConfig& config) {
  LATHE_TRY(read_decoder(fields, {.head_dim = 128}, config));
  read_attention_bias(fields, config);
  config.qk_norm = true;
  return {};
}

}  // namespace lathe::model
