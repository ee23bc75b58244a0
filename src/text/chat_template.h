// ChatTemplate: messages to the text a model was trained on, and where in it the assistant speaks.
//
// Spans come from the text as it is rendered once, never from the difference of two prefixes: templates render a turn
// differently once more turns follow (research in docs/research/text.md). To find a turn, the conversation is rendered once
// more with that turn's content replaced by a nonce; what the two texts do not share is what the model said. The span then
// takes in the special token that ends the turn.
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
  // The whole message object as JSON when it has more than role and content (tool_calls, reasoning_content, name, content in
  // parts); else empty. If set, it is what the template sees.
  std::string json;
};

struct RenderOptions {
  bool add_generation_prompt = true;
  std::string tools_json;   // a JSON array, or empty
  std::string kwargs_json;  // a JSON object of further template variables (chat_template_kwargs), or empty
};

struct Conversation {
  std::string text;
  std::vector<ByteSpan> assistant;  // one per assistant message, in order
};

class ChatTemplate {
 public:
  // `source`: the template. `variables_json`: a JSON object with bos_token, eos_token and the like. `special`: texts of the
  // special tokens, any of which may end a turn.
  static Result<ChatTemplate> create(std::string_view source, std::string variables_json, std::vector<std::string> special);

  // kInvalidArgument, by name: an unknown role, no messages, malformed JSON fields, whatever the template raises.
  Result<std::string> render(std::span<const Message> messages, const RenderOptions& options) const;

  // Without a generation prompt. kUnsupported if the template shows an assistant message in a way that cannot be located.
  Result<Conversation> render_with_spans(std::span<const Message> messages, const RenderOptions& options) const;

 private:
  struct Release {
    void operator()(lathe_template* handle) const;
  };
  std::unique_ptr<lathe_template, Release> handle_;
  std::string variables_json_;
  std::vector<std::string> special_;  // longest first
};

}  // namespace lathe::text
