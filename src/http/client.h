// Client: one request to another HTTP server, for the parts that ask an inference server about itself.
//
// Threads: one. Blocking.
#pragma once

#include <string>

#include "base/result.h"

namespace lathe::http {

struct Reply {
  int status = 0;
  std::string body;
};

// `url`: as parse_address() takes it. `body` empty: GET, else POST of JSON. A key that is not empty is
// sent as a bearer token. kUnavailable if nobody answers; any status is a reply.
Result<Reply> request(const std::string& url, const std::string& path, const std::string& body = "",
                      const std::string& api_key = "");

}  // namespace lathe::http
