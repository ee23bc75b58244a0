#include "text/chat_template.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "text/shim.h"

namespace lathe::text {
namespace {

using Json = nlohmann::ordered_json;  // templates print mappings in the order they came

constexpr std::array<std::string_view, 5> kRoles = {"system", "developer", "user", "assistant", "tool"};

// Characters of Unicode's private use area: in no real text, and no template treats them specially.
constexpr std::string_view kNonce = "\xEE\x80\x80\xEE\x80\x81\xEE\x80\x82";

Result<Json> parse_field(const std::string& text, const char* name, bool want_array) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || (want_array ? !json.is_array() : !json.is_object())) {
    return invalid_argument(std::string(name) + " must be a JSON " + (want_array ? "array" : "object"));
  }
  return json;
}

// OpenAI sends the arguments of a tool call as a string of JSON; templates want the mapping.
void parse_tool_arguments(Json& message) {
  if (!message.contains("tool_calls") || !message["tool_calls"].is_array()) return;
  for (Json& call : message["tool_calls"]) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
    Json& function = call["function"];
    if (!function.contains("arguments") || !function["arguments"].is_string()) continue;
    Json parsed = Json::parse(function["arguments"].get<std::string>(), nullptr, false);
    if (parsed.is_object()) function["arguments"] = std::move(parsed);
  }
}

// Content given as a list of text parts becomes one string: text models' templates know nothing else.
void join_text_parts(Json& message) {
  if (!message.contains("content") || !message["content"].is_array()) return;
  std::string joined;
  for (const Json& part : message["content"]) {
    if (!part.is_object() || part.value("type", "") != "text" || !part.contains("text") || !part["text"].is_string()) return;
    joined += part["text"].get<std::string>();
  }
  message["content"] = joined;
}

Result<Json> to_json(const Message& message) {
  if (std::find(kRoles.begin(), kRoles.end(), message.role) == kRoles.end()) {
    return invalid_argument("unknown role '" + message.role + "'; roles are system, developer, user, assistant and tool");
  }
  if (message.json.empty()) return Json{{"role", message.role}, {"content", message.content}};
  Json json = LATHE_TRY(parse_field(message.json, "a message", false));
  parse_tool_arguments(json);
  join_text_parts(json);
  return json;
}

Result<Json> build_context(std::span<const Message> messages, const RenderOptions& options, const std::string& variables) {
  if (messages.empty()) return invalid_argument("messages is empty");
  Json context = LATHE_TRY(parse_field(variables, "the template's variables", false));
  context["messages"] = Json::array();
  for (const Message& message : messages) context["messages"].push_back(LATHE_TRY(to_json(message)));
  context["add_generation_prompt"] = options.add_generation_prompt;
  if (!options.tools_json.empty()) context["tools"] = LATHE_TRY(parse_field(options.tools_json, "tools", true));
  if (!options.kwargs_json.empty()) {
    const Json kwargs = LATHE_TRY(parse_field(options.kwargs_json, "chat_template_kwargs", false));
    for (const auto& [name, value] : kwargs.items()) context[name] = value;
  }
  return context;
}

bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

// The part of `text` that `other` does not share, cut at whole characters.
ByteSpan difference(std::string_view text, std::string_view other) {
  const size_t shorter = std::min(text.size(), other.size());
  size_t begin = 0;
  while (begin < shorter && text[begin] == other[begin]) ++begin;
  while (begin > 0 && begin < text.size() && continues_character(text[begin])) --begin;
  size_t tail = 0;
  while (tail < shorter - begin && text[text.size() - 1 - tail] == other[other.size() - 1 - tail]) ++tail;
  while (tail > 0 && continues_character(text[text.size() - tail])) --tail;
  return {begin, text.size() - tail};
}

}  // namespace

void ChatTemplate::Release::operator()(lathe_template* handle) const { lathe_template_release(handle); }

Result<ChatTemplate> ChatTemplate::create(std::string_view source, std::string variables_json, std::vector<std::string> special) {
  ChatTemplate out;
  ShimBuffer error;
  lathe_template* handle = nullptr;
  LATHE_TRY(shim_status(lathe_template_create(bytes(source), source.size(), &handle, error.out()), error).at("chat template"));
  out.handle_.reset(handle);
  LATHE_TRY(parse_field(variables_json, "the template's variables", false));
  out.variables_json_ = std::move(variables_json);
  out.special_ = std::move(special);
  std::erase(out.special_, "");
  std::sort(out.special_.begin(), out.special_.end(), [](const auto& a, const auto& b) { return a.size() > b.size(); });
  return out;
}

namespace {

Result<std::string> render_context(const lathe_template* handle, const Json& context) {
  // Invalid UTF-8 in a message would make dump() throw; it is replaced, and the tokenizer never sees it.
  const std::string text = context.dump(-1, ' ', false, Json::error_handler_t::replace);
  ShimBuffer error, out;
  LATHE_TRY(shim_status(lathe_template_render(handle, bytes(text), text.size(), out.out(), error.out()), error).at("chat template"));
  return std::string(out.view());
}

}  // namespace

Result<std::string> ChatTemplate::render(std::span<const Message> messages, const RenderOptions& options) const {
  const Json context = LATHE_TRY(build_context(messages, options, variables_json_));
  return render_context(handle_.get(), context);
}

Result<Conversation> ChatTemplate::render_with_spans(std::span<const Message> messages, const RenderOptions& options) const {
  RenderOptions without_prompt = options;
  without_prompt.add_generation_prompt = false;
  Json context = LATHE_TRY(build_context(messages, without_prompt, variables_json_));
  Conversation conversation{.text = LATHE_TRY(render_context(handle_.get(), context))};
  size_t previous_end = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != "assistant") continue;
    const std::string which = "assistant message " + std::to_string(i);
    Json original = std::exchange(context["messages"][i], Json{{"role", "assistant"}, {"content", kNonce}});
    const std::string other = LATHE_TRY(render_context(handle_.get(), context));
    context["messages"][i] = std::move(original);
    if (other.find(kNonce) == std::string::npos) return unsupported("the chat template does not show the content of " + which);
    ByteSpan span = difference(conversation.text, other);
    const std::string_view rest = std::string_view(conversation.text).substr(span.end);
    for (const std::string& special : special_) {
      if (!rest.starts_with(special)) continue;
      span.end += special.size();
      break;
    }
    if (span.begin < previous_end || span.begin > span.end) return unsupported("the chat template shows " + which + " where it cannot be graded");
    previous_end = span.end;
    conversation.assistant.push_back(span);
  }
  return conversation;
}

}  // namespace lathe::text
