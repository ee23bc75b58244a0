// What Lathe reads and changes of chat completions that an inference server answers through it (vllm/proxy.h).
//
// Everything it does not understand is left to that server: no function here refuses anything.
// Threads: pure functions and values. Protocol page: docs/protocols/http.md
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace lathe::api {

// The body of a completion request with the version of the weights in "cache_salt", before the client's own salt:
// vLLM's prefix cache then matches requests of the same version only. A body that is no JSON object stays as it is.
std::string with_cache_salt(std::string_view body, int64_t version);

// What of a chat request a correction needs, as JSON: {"messages", "tools", "chat_template_kwargs"}. Nothing if it
// asks for more than the directory's template can show again: another template, documents, a continued message.
std::optional<std::string> conversation_of(std::string_view chat_body);

// The first choice of an answer.
struct Answer {
  std::string id;            // of the completion
  std::string message_json;  // {"role": "assistant", "content": ...}
};

// Of an answer sent whole. Nothing if it is none.
std::optional<Answer> answer_of(std::string_view body);

// Of one sent as server-sent events, cut into pieces anywhere.
class StreamedAnswer {
 public:
  StreamedAnswer();
  ~StreamedAnswer();
  StreamedAnswer(StreamedAnswer&&) noexcept;

  // The answer, once, with the piece that holds the stream's last event.
  std::optional<Answer> read(std::string_view piece);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lathe::api
