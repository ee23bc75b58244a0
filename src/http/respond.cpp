#include "http/respond.h"

#include "http/error_body.h"

namespace lathe::http {

Response respond(const Error& error) {
  const ErrorBody body = error_body(error);
  return {.status = body.status, .body = body.json};
}

Response respond(Result<std::string> body) {
  if (!body.ok()) return respond(body.error());
  return {.body = std::move(*body)};
}

}  // namespace lathe::http
