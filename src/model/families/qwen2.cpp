// Qwen2 and Qwen2.5: q, k and v have biases.
#include "model/families/decoder.h"
#include "model/families/family.h"

namespace lathe::model {

Status read_qwen2(ConfigFields& fields, ModelConfig& config) {
  LATHE_TRY(read_decoder(fields, {}, config));
  config.qkv_bias = true;
  return {};
}

}  // namespace lathe::model
