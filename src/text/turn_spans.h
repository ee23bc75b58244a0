// Where in a rendered conversation its assistant turns are. Private to src/text.
//
// Templates with {% generation %} tags say it themselves. For others, each turn is rendered once
// more with a nonce in its place: what the two texts do not share is what the model said. Templates
// also write there what no one said, such as an empty <think> block; the nonce's text has it too,
// so it stays context.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/template_context.h"

namespace lathe::text {

// Renders a context; deterministic.
using Render = std::function<Result<std::string>(const Json& context)>;

// Reads the spans between the marks of generation blocks. Empty if there are no marks; kUnsupported
// if they contradict `text`, which is the rendering without marks.
Result<std::vector<ByteSpan>> marked_spans(std::string_view text, std::string_view marked);

// By nonces, one span per assistant message. `text` is render(context); `special` is sorted,
// longest first. kUnsupported, naming the message, if one cannot be found.
Result<std::vector<ByteSpan>> nonce_spans(std::string_view text, const Json& context,
                                          std::span<const std::string> special, const Render& render);

// Takes in the special token that ends each turn.
void include_terminators(std::string_view text, std::span<const std::string> special, std::vector<ByteSpan>& spans);

// Whether the template ends an assistant's turn with a special token: if not, the one that follows
// a turn opens the next.
bool ends_turns(const Json& context, std::span<const std::string> special, const Render& render);

// One weight per assistant turn, each finite and >= 0; at least one turn.
Status check_turn_weights(size_t turns, std::span<const float> weights);

// The chosen turns have no tokens.
Error nothing_graded();

// Checks that there is one span per assistant message, in order, disjoint, and that each holds the
// content of its message.
Status check_spans(std::string_view text, const Json& messages, std::span<const ByteSpan> spans);

}  // namespace lathe::text
