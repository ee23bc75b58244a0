#include "text/turn_spans.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

namespace lathe::text {
namespace {

// Noncharacters of Unicode: in no real text, and no template treats them specially.
constexpr std::string_view kNonce = "\uFDD0\uFDD1\uFDD2";
constexpr std::string_view kEndOfThought = "</think>";
constexpr std::string_view kMarkBegin = "\uFDD3";
constexpr std::string_view kMarkEnd = "\uFDD4";

bool continues_character(char c) {
  return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U;
}

// Where `text` and `other` part, at a whole character.
size_t shared_prefix(std::string_view text, std::string_view other) {
  size_t length =
      static_cast<size_t>(std::mismatch(text.begin(), text.end(), other.begin(), other.end()).first - text.begin());
  while (length > 0 && length < text.size() && continues_character(text[length])) --length;
  return length;
}

// Where in `text`, at or after `begin`, the ending that it shares with `other` starts.
size_t shared_suffix(std::string_view text, std::string_view other, size_t begin) {
  const size_t limit = std::min(text.size(), other.size()) - begin;
  size_t length = 0;
  while (length < limit && text[text.size() - 1 - length] == other[other.size() - 1 - length]) ++length;
  while (length > 0 && continues_character(text[text.size() - length])) --length;
  return text.size() - length;
}

Json nonce_message() {
  return {{"role", "assistant"}, {"content", kNonce}};
}

// The special token that `text` begins with, or nothing.
std::string_view leading_token(std::string_view text, std::span<const std::string> special) {
  const auto token =
      std::find_if(special.begin(), special.end(), [&](const std::string& t) { return text.starts_with(t); });
  return token == special.end() ? std::string_view() : std::string_view(*token);
}

std::string nth(size_t index) {
  return "message " + std::to_string(index);
}

// The context with message `index` replaced.
std::optional<std::string> render_with(const Json& context, size_t index, Json message, const Render& render) {
  Json changed = context;
  changed["messages"][index] = std::move(message);
  Result<std::string> rendered = render(changed);
  if (!rendered.ok() || rendered->find(kNonce) == std::string::npos) return std::nullopt;
  return std::move(*rendered);
}

// Some templates refuse the conversation when a turn loses its tool calls (their results would
// follow nothing). Then the calls stay: another content or another name shows where the turn
// begins. Its end is the first special token after the last call's arguments, since what closes
// the call around them is the same whatever they are.
std::optional<ByteSpan> span_of_calls(std::string_view text, const Json& context, size_t index,
                                      std::span<const std::string> special, const Render& render) {
  const Json& original = context["messages"][index];
  const Json calls = original.value("tool_calls", Json());
  const auto is_call = [](const Json& call) {
    return call.is_object() && call.contains("function") && call["function"].is_object();
  };
  if (!calls.is_array() || calls.empty() || !is_call(calls.front()) || !is_call(calls.back())) return std::nullopt;
  size_t begin = std::string_view::npos;
  const auto note_begin = [&](Json message) {
    const auto other = render_with(context, index, std::move(message), render);
    if (other) begin = std::min(begin, shared_prefix(text, *other));
  };
  for (const char* field : {"content", "reasoning_content", "reasoning", "thinking"}) {
    Json message = original;
    message[field] = kNonce;
    note_begin(std::move(message));
  }
  Json renamed = original;
  renamed["tool_calls"].front()["function"]["name"] = kNonce;
  note_begin(std::move(renamed));

  Json argued = original;
  argued["tool_calls"].back()["function"]["arguments"] = Json{{kNonce, kNonce}};
  const auto other = render_with(context, index, std::move(argued), render);
  if (!other || begin == std::string_view::npos) return std::nullopt;
  size_t end = shared_suffix(text, *other, std::min(begin, other->size()));
  while (end < text.size() && leading_token(text.substr(end), special).empty()) ++end;
  return ByteSpan{begin, end};
}

std::string_view trimmed(std::string_view text) {
  // Templates trim as Python does; a leading or trailing character outside ASCII may be white space
  // too, so none is asked for.
  const auto solid = [](char c) { return static_cast<unsigned char>(c) > ' ' && static_cast<unsigned char>(c) < 0x7F; };
  const auto begin = std::find_if(text.begin(), text.end(), solid);
  const auto end = std::find_if(text.rbegin(), std::make_reverse_iterator(begin), solid).base();
  return {begin, end};
}

// The strings of a message's content that its span must hold. What precedes </think> may be dropped
// or moved.
std::vector<std::string_view> expected_texts(const Json& message) {
  std::vector<std::string_view> texts;
  const auto add = [&](const Json& json) {
    if (!json.is_string()) return;
    std::string_view text = json.get_ref<const std::string&>();
    if (const size_t at = text.rfind(kEndOfThought); at != std::string_view::npos)
      text.remove_prefix(at + kEndOfThought.size());
    texts.push_back(trimmed(text));
  };
  const auto content = message.find("content");
  if (content == message.end()) return texts;
  if (!content->is_array()) add(*content);
  if (content->is_array()) {
    for (const Json& part : *content) {
      if (part.is_object() && part.contains("text")) add(part["text"]);
    }
  }
  return texts;
}

// Moves the ends of `span` out of any special token that they cut.
void widen_to_tokens(std::string_view text, std::span<const std::string> special, ByteSpan& span) {
  const auto cut_token = [&](size_t at) -> std::optional<ByteSpan> {
    for (const std::string& token : special) {
      for (size_t back = 1; back < token.size() && back <= at; ++back) {
        if (text.substr(at - back).starts_with(token)) return ByteSpan{at - back, at - back + token.size()};
      }
    }
    return std::nullopt;
  };
  if (const auto token = cut_token(span.begin)) span.begin = token->begin;
  if (const auto token = cut_token(span.end)) span.end = token->end;
}

}  // namespace

Result<std::vector<ByteSpan>> marked_spans(std::string_view text, std::string_view marked) {
  std::vector<ByteSpan> spans;
  std::string plain;
  bool open = false;
  while (!marked.empty()) {
    const bool begins = marked.starts_with(kMarkBegin);
    if (!begins && !marked.starts_with(kMarkEnd)) {
      plain += marked.front();
      marked.remove_prefix(1);
      continue;
    }
    if (begins == open) return unsupported("the chat template's generation blocks are nested");
    if (begins) spans.push_back({plain.size(), plain.size()});
    spans.back().end = plain.size();
    open = begins;
    marked.remove_prefix(kMarkBegin.size());
  }
  if (open || plain != text) return unsupported("the chat template's generation blocks cannot be followed");
  return spans;
}

Result<std::vector<ByteSpan>> nonce_spans(std::string_view text, const Json& context,
                                          std::span<const std::string> special, const Render& render) {
  std::vector<ByteSpan> spans;
  for (size_t i = 0; i < context["messages"].size(); ++i) {
    if (context["messages"][i].value("role", "") != "assistant") continue;
    if (const auto other = render_with(context, i, nonce_message(), render)) {
      const size_t begin = shared_prefix(text, *other);
      spans.push_back({begin, shared_suffix(text, *other, begin)});
    } else if (const auto span = span_of_calls(text, context, i, special, render)) {
      spans.push_back(*span);
    } else {
      return unsupported("the chat template does not show where " + nth(i) + " is, so that it cannot be graded");
    }
  }
  return spans;
}

void include_terminators(std::string_view text, std::span<const std::string> special, std::vector<ByteSpan>& spans) {
  for (ByteSpan& span : spans) {
    widen_to_tokens(text, special, span);
    span.end += leading_token(text.substr(span.end), special).size();
  }
}

bool ends_turns(const Json& context, std::span<const std::string> special, const Render& render) {
  const auto rendered = render_with(context, context["messages"].size() - 1, nonce_message(), render);
  if (!rendered) return true;  // a template that refuses so plain a conversation: most end their turns
  return !leading_token(std::string_view(*rendered).substr(rendered->rfind(kNonce) + kNonce.size()), special).empty();
}

Status check_turn_weights(size_t turns, std::span<const float> weights) {
  if (turns == 0) return invalid_argument("the conversation has no assistant turn to learn");
  if (turns != weights.size()) {
    return invalid_argument("the conversation has " + std::to_string(turns) + " assistant turns, but " +
                            std::to_string(weights.size()) + " weights were given");
  }
  for (const float weight : weights) {
    if (!std::isfinite(weight) || weight < 0)
      return invalid_argument("the weight of an assistant turn must be finite and not negative");
  }
  return {};
}

Error nothing_graded() {
  return invalid_argument(
      "no token of the conversation is graded: the chosen assistant turns are empty or have weight 0");
}

Status check_spans(std::string_view text, const Json& messages, std::span<const ByteSpan> spans) {
  const auto is_assistant = [](const Json& message) { return message.value("role", "") == "assistant"; };
  const auto count = static_cast<size_t>(std::count_if(messages.begin(), messages.end(), is_assistant));
  if (count != spans.size()) {
    return unsupported("the chat template marks " + std::to_string(spans.size()) + " turns, but there are " +
                       std::to_string(count) + " assistant messages");
  }
  auto span = spans.begin();
  size_t previous_end = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!is_assistant(messages[i])) continue;
    if (span->begin < previous_end || span->end < span->begin) {
      return unsupported("the chat template mixes " + nth(i) + " with others, so that it cannot be graded");
    }
    const std::string_view said = text.substr(span->begin, span->end - span->begin);
    for (const std::string_view expected : expected_texts(messages[i])) {
      if (said.find(expected) == std::string_view::npos) {
        return unsupported("the chat template changes the content of " + nth(i) + ", so that it cannot be graded");
      }
    }
    previous_end = span->end;
    ++span;
  }
  return {};
}

}  // namespace lathe::text
