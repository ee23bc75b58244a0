// ErrorBody: an Error as the HTTP status and the JSON body that OpenAI's clients expect.
//
// Threads: pure functions. Protocol page: docs/protocols/http.md
#pragma once

#include <string>

#include "base/result.h"

namespace lathe::http {

// {"error": {"message", "type", "param", "code"}} and the status it goes with.
struct ErrorBody {
  int status = 500;
  std::string json;
};
ErrorBody error_body(const Error& error);

}  // namespace lathe::http
