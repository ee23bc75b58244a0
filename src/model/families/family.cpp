#include "model/families/family.h"

#include <array>

namespace lathe::model {

std::span<const Family> families() {
  static constexpr std::array kFamilies = {
      Family{.model_type = "llama", .read = read_llama},
      Family{.model_type = "qwen2", .read = read_qwen2},
      Family{.model_type = "qwen3", .read = read_qwen3},
      Family{.model_type = "qwen3_5_text",
             .read = read_qwen3_5,
             .wrapper_type = "qwen3_5",
             .wrapper_prefix = "model.language_model."},
      Family{.model_type = "granite", .read = read_granite},
  };
  return kFamilies;
}

}  // namespace lathe::model
