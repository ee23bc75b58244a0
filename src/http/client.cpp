#include "http/client.h"

#include <httplib.h>

namespace lathe::http {

Result<Reply> request(const std::string& url, const std::string& path, const std::string& body,
                      const std::string& api_key) {
  if (!url.starts_with("http://"))
    return invalid_argument("the server's address must begin with http://, not '" + url + "'");
  httplib::Client client(url);
  if (!client.is_valid()) return invalid_argument("'" + url + "' is not an address");
  httplib::Headers headers;
  if (!api_key.empty()) headers.emplace("Authorization", "Bearer " + api_key);
  const httplib::Result result =
      body.empty() ? client.Get(path, headers) : client.Post(path, headers, body, "application/json");
  if (!result)
    return Error{Code::kUnavailable, "no answer from " + url + " (" + httplib::to_string(result.error()) + ")"};
  return Reply{result->status, result->body};
}

}  // namespace lathe::http
