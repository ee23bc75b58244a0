#include "attach/server.h"

#include <nlohmann/json.hpp>

#include "http/client.h"

namespace lathe::attach {

using Json = nlohmann::json;

Result<std::string> Server::socket_path() const {
  const http::Reply reply = LATHE_TRY(http::request(url, "/lathe", "", api_key));
  const Json json = Json::parse(reply.body, nullptr, false);
  if (reply.status == 404) {
    return not_found(
        "the server at " + url +
        " has no plugin of Lathe; install python/lathe_vllm there and start it with VLLM_PLUGINS=lathe (versions "
        "before 0.25: run `python -m lathe_vllm` beside it and name its --socket)");
  }
  if (reply.status != 200 || !json.is_object() || !json.contains("socket") || !json["socket"].is_string())
    return invalid_argument(url + "/lathe answered " + std::to_string(reply.status) + ", and not as lathe-vllm does");
  return json["socket"].get<std::string>();
}

Result<std::vector<int32_t>> Server::tokenize(const std::string& request_json) const {
  const http::Reply reply = LATHE_TRY(http::request(url, "/tokenize", request_json, api_key));
  const Json json = Json::parse(reply.body, nullptr, false);
  if (reply.status != 200 || !json.is_object() || !json.contains("tokens") || !json["tokens"].is_array())
    return invalid_argument(url + "/tokenize answered " + std::to_string(reply.status) + ": " +
                            reply.body.substr(0, 200));
  std::vector<int32_t> tokens;
  for (const Json& token : json["tokens"]) {
    if (!token.is_number_integer()) return invalid_argument(url + "/tokenize answered with something else than tokens");
    tokens.push_back(token.get<int32_t>());
  }
  return tokens;
}

}  // namespace lathe::attach
