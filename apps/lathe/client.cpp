#include "client.h"

#include <httplib.h>

#include <nlohmann/json.hpp>

#include "delta/paths.h"
#include "http/address.h"

namespace lathe::cli {

using Json = nlohmann::ordered_json;

namespace {

// What a person typed or pasted may be in another encoding, which JSON cannot carry.
Result<std::string> serialised(const Json& body) {
  try {
    return body.dump();
  } catch (const Json::type_error&) {
    return invalid_argument("the text is not valid UTF-8; is the terminal set to another encoding?");
  }
}

}  // namespace

struct Client::State {
  std::string url;
  httplib::Client http;
  httplib::Headers headers;

  State(const http::Address& address, const std::string& key) : url(address.url()), http(address.host, address.port) {
    http.set_read_timeout(3600);  // a learning job may take its time
    if (!key.empty()) headers.emplace("Authorization", "Bearer " + key);
  }

  Error unreachable(httplib::Error error) const {
    return {Code::kUnavailable,
            "no answer from " + url + " (" + httplib::to_string(error) + "); is `lathe serve` running there?"};
  }

  Error refused(int status, const std::string& body) const {
    const Json json = Json::parse(body, nullptr, false);
    if (json.is_object() && json.contains("error") && json["error"].is_object())
      return invalid_argument(json["error"].value("message", body));
    return internal(url + " answered " + std::to_string(status) +
                    ", and not as `lathe serve` does; is it another server?");
  }

  Result<Json> read(const httplib::Result& result) const {
    if (!result) return unreachable(result.error());
    if (result->status >= 400) return refused(result->status, result->body);
    Json json = Json::parse(result->body, nullptr, false);
    if (json.is_discarded())
      return internal(url + " did not answer with JSON; is it another server than `lathe serve`?");
    return json;
  }
};

Result<Client> Client::create(const std::string& url, const std::string& api_key) {
  return Client(std::make_unique<State>(LATHE_TRY(http::parse_address(url)), api_key));
}

Client::Client(std::unique_ptr<State> state) : state_(std::move(state)) {}
Client::Client(Client&&) noexcept = default;
Client::~Client() = default;

Result<Json> Client::get(const std::string& path) {
  return state_->read(state_->http.Get(path, state_->headers));
}

Result<Json> Client::post(const std::string& path, const Json& body) {
  const std::string text = LATHE_TRY(serialised(body));
  return state_->read(state_->http.Post(path, state_->headers, text, "application/json"));
}

Status Client::post_streaming(const std::string& path, const Json& body,
                              const std::function<bool(const Json&)>& on_event) {
  httplib::Request request;
  request.method = "POST";
  request.path = path;
  request.headers = state_->headers;
  request.set_header("Content-Type", "application/json");
  request.body = LATHE_TRY(serialised(body));
  std::string pending, all;
  bool wanted = true;
  request.content_receiver = [&](const char* data, size_t size, uint64_t, uint64_t) {
    pending.append(data, size);
    all.append(data, size);
    for (size_t end; (end = pending.find("\n\n")) != std::string::npos; pending.erase(0, end + 2)) {
      const std::string event = pending.substr(0, end);
      if (!event.starts_with("data: ") || event == "data: [DONE]") continue;
      const Json json = Json::parse(event.substr(6), nullptr, false);
      if (json.is_object()) wanted = wanted && on_event(json);
    }
    return wanted;
  };
  const httplib::Result result = state_->http.send(request);
  if (!wanted) return {};
  if (!result) return state_->unreachable(result.error());
  if (result->status >= 400) return state_->refused(result->status, all);
  return {};
}

std::string running_server(io::Env& env, const std::string& directory) {
  const delta::Paths paths(directory);
  const auto lock = env.lock(paths.owner_lock, io::IfLocked::kFail);
  if (lock.ok() || lock.error().code != Code::kConflict) return "";
  const auto text = io::read_text(env, paths.server);
  if (!text.ok()) return "";
  const Json json = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  return json.is_object() && json.contains("url") && json["url"].is_string() ? json["url"].get<std::string>() : "";
}

}  // namespace lathe::cli
