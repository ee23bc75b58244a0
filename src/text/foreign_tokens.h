// Which tokens of a conversation are graded when another program, an inference server, renders and tokenises it.
//
// Only its tokens are known, not its text. So each graded turn is tokenised twice more with a nonce in its place: what
// no other conversation shares is what the model said. That is the rule of turn_spans.h, on tokens instead of bytes.
//
// Threads: pure functions.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "text/text.h"

namespace lathe::text {

// The whole conversation as the other program would feed it to the model, without a generation prompt; deterministic.
using TokenizeMessages = std::function<Result<std::vector<TokenId>>(std::span<const Message> messages)>;
using IsSpecial = std::function<bool(TokenId)>;

// As Text::graded(). kUnsupported, naming the message, if the tokens do not show where a graded turn is.
Result<GradedTokens> graded_elsewhere(std::span<const Message> messages, std::span<const float> turn_weights,
                                      const TokenizeMessages& tokenize, const IsSpecial& is_special);

}  // namespace lathe::text
