#include "daemon/prompt_tokens.h"

namespace lathe::daemon {

Result<std::vector<int32_t>> prompt_tokens(const text::Text& text, const api::Prompt& prompt) {
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&prompt)) return *ids;
  text::Encoding encoding = LATHE_TRY(text.tokenizer().encode(std::get<std::string>(prompt)));
  return std::move(encoding.ids);
}

}  // namespace lathe::daemon
