#include "http/client.h"

#include <httplib.h>

#include "http/address.h"

namespace lathe::http {

Result<Reply> request(const std::string& url, const std::string& path, const std::string& body,
                      const std::string& api_key) {
  const Address address = LATHE_TRY(parse_address(url));
  httplib::Client client(address.host, address.port);
  httplib::Headers headers;
  if (!api_key.empty()) headers.emplace("Authorization", "Bearer " + api_key);
  const httplib::Result result =
      body.empty() ? client.Get(path, headers) : client.Post(path, headers, body, "application/json");
  if (!result)
    return Error{Code::kUnavailable, "no answer from " + url + " (" + httplib::to_string(result.error()) + ")"};
  return Reply{result->status, result->body};
}

}  // namespace lathe::http
