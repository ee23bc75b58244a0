// Families: what the model_type of a config.json means, one file each.
//
// A family is a list of facts: which fields it has beyond those of every decoder and what stands in for absent ones,
// which norms, biases and multipliers it uses, what mixes the tokens of each layer, and what is refused. It reads them
// into ModelConfig; nothing outside this folder asks which family a model is. How to add one: docs/adding-a-model.md.
//
// Threads: pure functions.
#pragma once

#include <span>
#include <string_view>

#include "model/config.h"
#include "model/config_fields.h"

namespace lathe::model {

struct Family {
  std::string_view model_type;
  Status (*read)(ConfigFields& fields, ModelConfig& config);
  // Of a wrapper around this family (text and vision): its model_type, with the text model's fields in "text_config",
  // and the path of the text model's tensors. Empty: there is none.
  std::string_view wrapper_type = {};
  std::string_view wrapper_prefix = {};
};

// All that are supported.
std::span<const Family> families();

// One function a family, in the file of its name.
Status read_granite(ConfigFields& fields, ModelConfig& config);
Status read_llama(ConfigFields& fields, ModelConfig& config);
Status read_qwen2(ConfigFields& fields, ModelConfig& config);
Status read_qwen3(ConfigFields& fields, ModelConfig& config);
Status read_qwen3_5(ConfigFields& fields, ModelConfig& config);

}  // namespace lathe::model
