#include "vllm/server.h"

#include <nlohmann/json.hpp>

#include "http/client.h"

namespace lathe::vllm {

using Json = nlohmann::ordered_json;

Result<std::string> Server::socket_path() const {
  const http::Reply reply = LATHE_TRY(http::request(url, "/lathe", "", api_key));
  const Json json = Json::parse(reply.body, nullptr, false);
  if (reply.status == 404) {
    return not_found(
        "the server at " + url +
        " has no plugin of Lathe; install python/lathe_vllm there and start it with VLLM_PLUGINS=lathe (versions "
        "before 0.26: run `python -m lathe_vllm` next to it and name its --socket)");
  }
  if (reply.status != 200 || !json.is_object() || !json.contains("socket") || !json["socket"].is_string())
    return invalid_argument(url + "/lathe answered " + std::to_string(reply.status) + ", and not as lathe-vllm does");
  return json["socket"].get<std::string>();
}

namespace {

std::string tokenize_request(std::span<const text::Message> messages, const text::RenderOptions& options) {
  Json request = {{"messages", Json::array()}, {"add_generation_prompt", options.add_generation_prompt}};
  for (const text::Message& message : messages) {
    request["messages"].push_back(message.json.empty() ? Json{{"role", message.role}, {"content", message.content}}
                                                       : Json::parse(message.json, nullptr, false));
  }
  if (!options.tools_json.empty()) request["tools"] = Json::parse(options.tools_json, nullptr, false);
  if (!options.kwargs_json.empty()) request["chat_template_kwargs"] = Json::parse(options.kwargs_json, nullptr, false);
  return request.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

Result<std::vector<text::TokenId>> Server::tokenize(std::span<const text::Message> messages,
                                                    const text::RenderOptions& options) const {
  const http::Reply reply = LATHE_TRY(http::request(url, "/tokenize", tokenize_request(messages, options), api_key));
  const Json json = Json::parse(reply.body, nullptr, false);
  if (reply.status != 200 || !json.is_object() || !json.contains("tokens") || !json["tokens"].is_array())
    return invalid_argument(url + "/tokenize answered " + std::to_string(reply.status) + ": " +
                            reply.body.substr(0, 200));
  std::vector<text::TokenId> tokens;
  for (const Json& token : json["tokens"]) {
    if (!token.is_number_integer())
      return invalid_argument(url + "/tokenize answered with something other than tokens");
    tokens.push_back(token.get<int32_t>());
  }
  return tokens;
}

}  // namespace lathe::vllm
