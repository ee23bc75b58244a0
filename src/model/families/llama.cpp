// Llama 2 and 3, SmolLM2 and whatever else was saved as one.
#include "model/families/decoder.h"
#include "model/families/family.h"

namespace lathe::model {

Status read_llama(ConfigFields& fields, ModelConfig& config) {
  LATHE_TRY(read_decoder(fields, {}, config));
  read_attention_bias(fields, config);
  config.mlp_bias = fields.flag("mlp_bias", false);
  return {};
}

}  // namespace lathe::model
