// What the handlers of all routes share.
//
// Threads: pure functions, any.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "api/requests.h"
#include "base/result.h"
#include "config/settings.h"
#include "http/server.h"
#include "model/config.h"
#include "text/text.h"

namespace lathe::daemon {

int64_t unix_seconds(std::chrono::system_clock::time_point time);

// `prefix` and twenty random letters.
std::string new_id(const char* prefix);

http::Options server_options(const config::Settings& settings);

http::Response respond(const Error& error);
http::Response respond(Result<std::string> body);

// Tokens of prompt and answer, or of an example, at most.
// `max_context`: 0 is the model's limit.
int64_t context_limit(int64_t max_context, const model::ModelConfig& model);

Result<std::vector<int32_t>> prompt_tokens(const text::Text& text, const api::Prompt& prompt);

}  // namespace lathe::daemon
