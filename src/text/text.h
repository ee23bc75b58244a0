// Text: tokenizer and chat template of one model directory; conversations to prompts and to graded
// tokens.
//
// Threads: immutable after load, any thread.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/env.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace lathe::text {

struct GradedTokens {
  std::vector<TokenId> ids;
  std::vector<float> weights;  // one per token; 0 is context
};

class Text {
 public:
  // Reads tokenizer.json (required), and for the template chat_template.jinja, else chat_template
  // in tokenizer_config.json. A directory without a template loads; what needs one then says so.
  static Result<Text> load(io::Env& env, const std::string& directory);

  const Tokenizer& tokenizer() const { return tokenizer_; }
  bool has_chat_template() const { return template_.has_value(); }
  // Never null; kUnsupported if the directory has none.
  Result<const ChatTemplate*> chat_template() const;

  Result<std::vector<TokenId>> prompt(std::span<const Message> messages, const RenderOptions& options) const;

  // The conversation tokenised once; a token is graded if it shares a byte with a graded assistant
  // turn. turn_weights: one per assistant message, >= 0. Refused by name: no assistant message,
  // another count of weights, nothing graded.
  Result<GradedTokens> graded(std::span<const Message> messages, std::span<const float> turn_weights,
                              const RenderOptions& options) const;

 private:
  Tokenizer tokenizer_;
  std::optional<ChatTemplate> template_;
};

}  // namespace lathe::text
