#include "vllm/proxy.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "api/responses.h"
#include "base/log.h"
#include "http/error_body.h"

namespace lathe::vllm {
namespace {

constexpr char kChat[] = "/v1/chat/completions";
constexpr char kCompletions[] = "/v1/completions";

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

// Headers that are about one connection, or that each side's library writes itself.
bool is_own(const std::string& name) {
  constexpr std::array kOwn = {"connection",
                               "keep-alive",
                               "proxy-authenticate",
                               "proxy-authorization",
                               "te",
                               "trailer",
                               "upgrade",
                               "transfer-encoding",
                               "content-length",
                               "host",
                               "expect",
                               "accept-encoding",
                               "remote_addr",
                               "remote_port",
                               "local_addr",
                               "local_port",
                               "authorization",
                               "date",
                               "server",
                               "x-lathe-version",
                               "origin",
                               "vary"};
  // Which pages may read the answers is for Lathe to say.
  if (lower(name).starts_with("access-control-")) return true;
  return std::find(kOwn.begin(), kOwn.end(), lower(name)) != kOwn.end();
}

http::Headers passed_on(const http::Headers& headers) {
  http::Headers kept;
  std::copy_if(headers.begin(), headers.end(), std::back_inserter(kept),
               [](const auto& h) { return !is_own(h.first); });
  return kept;
}

// Takes the content's type out of the headers, since a response has it by itself.
std::string take_content_type(http::Headers& headers) {
  const auto found =
      std::find_if(headers.begin(), headers.end(), [](const auto& h) { return lower(h.first) == "content-type"; });
  if (found == headers.end()) return "application/octet-stream";
  std::string type = std::move(found->second);
  headers.erase(found);
  return type;
}

http::Response failed(const Error& error) {
  const http::ErrorBody body = http::error_body(error.at("vLLM"));
  return {.status = body.status, .body = body.json};
}

Result<std::string> whole_body(http::Exchange& exchange, const http::Exchange::Wanted& wanted) {
  std::string body;
  for (;;) {
    const std::string piece = LATHE_TRY(exchange.next(wanted));
    if (piece.empty()) return body;
    body += piece;
  }
}

}  // namespace

void Proxy::add_routes(http::Server& server) {
  for (const char* path : {kChat, kCompletions, "/tokenize", "/detokenize"})
    server.route("POST", path, [this](const http::Request& request) { return pass(request, "POST"); });
  server.route("GET", "/v1/models", [this](const http::Request& request) { return pass(request, "GET"); });
}

http::Response Proxy::pass(const http::Request& request, const char* method) {
  const int64_t version = version_();
  http::Exchange::Call call{.url = upstream_.url, .method = method, .path = request.path, .body = request.body};
  if (request.path == kChat || request.path == kCompletions) call.body = api::with_cache_salt(request.body, version);
  call.headers = passed_on(request.headers);
  call.headers.emplace_back("Accept-Encoding", "identity");
  if (!upstream_.api_key.empty()) call.headers.emplace_back("Authorization", "Bearer " + upstream_.api_key);
  auto started = http::Exchange::start(std::move(call));
  if (!started.ok()) return failed(started.error());
  // Shared, because a std::function must be copyable.
  const std::shared_ptr<http::Exchange> exchange = std::move(started).value();
  const http::Exchange::Wanted wanted = [this, connected = request.connected] { return !stopping_ && connected(); };

  auto head = exchange->head(wanted);
  if (!head.ok()) return failed(head.error());
  http::Response response{.status = head->status, .headers = passed_on(head->headers)};
  response.content_type = take_content_type(response.headers);
  const auto asked = keepsake(request, version, head->status);
  if (!response.content_type.starts_with("text/event-stream")) {
    auto body = whole_body(*exchange, wanted);
    if (!body.ok()) return failed(body.error());
    if (asked) keep(asked, api::answer_of(*body));
    response.body = std::move(*body);
    return response;
  }
  response.pieces = [=, this, reader = std::make_shared<api::StreamedAnswer>()](const http::SendPiece& send) {
    for (;;) {
      const auto piece = exchange->next(wanted);
      if (!piece.ok()) {
        if (piece.error().code != Code::kCancelled) log::error(piece.error().message);
        return false;
      }
      if (piece->empty()) return true;
      // Before its end is passed on: a client may correct the answer at once.
      if (asked) keep(asked, reader->read(*piece));
      if (!send(*piece)) return false;
    }
  };
  return response;
}

std::optional<store::Completion> Proxy::keepsake(const http::Request& request, int64_t version, int status) const {
  if (keep_ == 0 || request.path != kChat || status != 200) return {};
  auto conversation = api::conversation_of(request.body);
  if (!conversation) return {};
  return store::Completion{.version = version, .conversation_json = std::move(*conversation)};
}

void Proxy::keep(const std::optional<store::Completion>& asked, const std::optional<api::Answer>& answer) {
  if (!answer) return;
  store::Completion completion = *asked;
  completion.id = answer->id;
  completion.answer_json = answer->message_json;
  store_.keep_completion(completion, keep_);
}

}  // namespace lathe::vllm
