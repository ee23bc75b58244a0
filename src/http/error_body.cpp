#include "http/error_body.h"

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>

namespace lathe::http {
namespace {

using Json = nlohmann::json;

int status_of(const Error& error) {
  switch (error.code) {
    case Code::kInvalidArgument:
    case Code::kUnsupported:
      return 400;
    case Code::kNotFound:
      return 404;
    case Code::kConflict:
      return 409;
    case Code::kExhausted:
      return 429;
    case Code::kUnavailable:
    case Code::kCancelled:
      return 503;
    case Code::kIo:
      return error.native == ENOSPC || error.native == EDQUOT ? 507 : 500;
    case Code::kCorruption:
    case Code::kInternal:
      return 500;
  }
  return 500;
}

// Messages put a field in front in single quotes: 'temperature' must be ...
Json param_of(const std::string& message) {
  if (message.empty() || message[0] != '\'') return nullptr;
  const size_t end = message.find('\'', 1);
  return end == std::string::npos ? Json(nullptr) : Json(message.substr(1, end - 1));
}

}  // namespace

ErrorBody error_body(const Error& error) {
  const int status = status_of(error);
  const char* type = status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
  std::string code(code_name(error.code));
  std::replace(code.begin(), code.end(), ' ', '_');
  const Json json = {
      {"error", {{"message", error.message}, {"type", type}, {"param", param_of(error.message)}, {"code", code}}}};
  // A message may quote what a client sent, which may not be UTF-8; a response must be.
  return {status, json.dump(-1, ' ', false, Json::error_handler_t::replace)};
}

}  // namespace lathe::http
