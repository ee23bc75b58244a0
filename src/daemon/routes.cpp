#include "daemon/routes.h"

#include <algorithm>
#include <random>

#include "api/responses.h"
#include "http/error_body.h"

namespace lathe::daemon {

int64_t unix_seconds(std::chrono::system_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::seconds>(time.time_since_epoch()).count();
}

std::string new_id(const char* prefix) {
  thread_local std::mt19937_64 random{std::random_device{}()};
  static constexpr char kDigits[] = "0123456789abcdefghijklmnopqrstuvwxyz";
  std::string id = prefix;
  for (int i = 0; i < 20; ++i) id += kDigits[random() % 36];
  return id;
}

http::Options server_options(const config::Settings& settings) {
  return {.host = settings.host,
          .port = settings.port,
          .api_key = settings.api_key,
          .allowed_hosts = settings.allowed_hosts,
          .allowed_origins = settings.allowed_origins,
          .threads = settings.http_threads,
          .max_body_bytes = settings.max_body_bytes};
}

http::Response respond(const Error& error) {
  const http::ErrorBody body = http::error_body(error);
  return {.status = body.status, .body = body.json};
}

http::Response respond(Result<std::string> body) {
  if (!body.ok()) return respond(body.error());
  return {.body = std::move(*body)};
}

int64_t context_limit(int64_t max_context, const model::ModelConfig& model) {
  return max_context > 0 ? std::min(max_context, model.max_positions) : model.max_positions;
}

Result<std::vector<int32_t>> prompt_tokens(const text::Text& text, const api::Prompt& prompt) {
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&prompt)) return *ids;
  text::Encoding encoding = LATHE_TRY(text.tokenizer().encode(std::get<std::string>(prompt)));
  return std::move(encoding.ids);
}

}  // namespace lathe::daemon
