// A handler's result as the response it sends.
//
// Threads: pure functions. Protocol page: docs/protocols/http.md
#pragma once

#include <string>

#include "base/result.h"
#include "http/server.h"

namespace lathe::http {

// The status and body of error_body().
Response respond(const Error& error);
// 200 with this JSON, or the error.
Response respond(Result<std::string> body);

}  // namespace lathe::http
