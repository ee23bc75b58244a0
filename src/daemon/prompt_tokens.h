// The tokens of a request's prompt, which is text or tokens.
//
// Threads: a pure function.
#pragma once

#include <cstdint>
#include <vector>

#include "api/requests.h"
#include "base/result.h"
#include "text/text.h"

namespace lathe::daemon {

Result<std::vector<int32_t>> prompt_tokens(const text::Text& text, const api::Prompt& prompt);

}  // namespace lathe::daemon
