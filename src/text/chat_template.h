// ChatTemplate: messages to the text a model was trained on, and where in it the assistant speaks.
//
// Spans come from the text as it is rendered once, never from the difference of two prefixes:
// templates render a turn differently once more turns follow. turn_spans.h says how a turn is
// found.
//
// Threads: immutable after load, any thread.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/tokenizer.h"

struct lathe_template;

namespace lathe::text {

struct Message {
  std::string role;  // system, developer, user, assistant or tool
  std::string content;
  // The whole message object as JSON when it has more than role and content (tool_calls,
  // reasoning_content, name, content in parts); else empty. If set, it is what the template sees.
  std::string json;
};

struct RenderOptions {
  bool add_generation_prompt = true;
  std::string tools_json;   // a JSON array, or empty
  std::string kwargs_json;  // a JSON object of further template variables (chat_template_kwargs), or empty
};

struct Conversation {
  std::string text;
  // One per assistant message, in order: what the model said, with the special token that ends the
  // turn. What the template puts before it by itself (headers, an empty <think> block) is not part
  // of it.
  std::vector<ByteSpan> assistant;
};

class ChatTemplate {
 public:
  // `source`: the template. `variables_json`: a JSON object with bos_token, eos_token and the like.
  // `special`: texts of the special tokens, any of which may end a turn.
  static Result<ChatTemplate> create(std::string_view source, std::string variables_json,
                                     std::vector<std::string> special);

  // Rendered as transformers renders, from messages prepared as servers prepare them: tool-call
  // arguments parsed, content in parts joined if the template does not take parts, and where the
  // template refuses these, as they came. kInvalidArgument, by name: an unknown role, no messages,
  // malformed JSON fields, whatever the template raises.
  Result<std::string> render(std::span<const Message> messages, const RenderOptions& options) const;

  // Without a generation prompt. kUnsupported if the template shows an assistant message in a way
  // that cannot be located.
  Result<Conversation> render_with_spans(std::span<const Message> messages, const RenderOptions& options) const;

 private:
  struct Prepared;
  Result<Prepared> prepare(std::span<const Message> messages, const RenderOptions& options) const;

  struct Release {
    void operator()(lathe_template* handle) const;
  };
  std::unique_ptr<lathe_template, Release> handle_;
  std::string variables_json_;
  std::vector<std::string> special_;  // longest first
  bool takes_parts_ = false;
  bool marks_generation_ = false;
  bool ends_turns_ = true;
};

}  // namespace lathe::text
