#include "text/template_context.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

namespace lathe::text {
namespace {

constexpr std::array<std::string_view, 5> kRoles = {"system", "developer", "user", "assistant", "tool"};

constexpr int kMaxDepth = 100;  // printing recurses

void parse_tool_arguments(Json& message) {
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || !calls->is_array()) return;
  for (Json& call : *calls) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
    Json& function = call["function"];
    if (!function.contains("arguments") || !function["arguments"].is_string()) continue;
    Json parsed = Json::parse(function["arguments"].get<std::string>(), nullptr, /*allow_exceptions=*/false);
    if (parsed.is_object()) function["arguments"] = std::move(parsed);
  }
}

// Content in parts that are not all text is left as it is: the template will say that it cannot
// take it.
void join_text_parts(Json& message) {
  const auto content = message.find("content");
  if (content == message.end() || !content->is_array()) return;
  std::string joined;
  for (const Json& part : *content) {
    if (!part.is_object() || !part.contains("text") || !part["text"].is_string()) return;
    if (&part != &content->front()) joined += '\n';
    joined += part["text"].get<std::string>();
  }
  *content = joined;
}

Result<Json> message_json(const Message& message, bool parts, const Preparation& preparation) {
  if (std::find(kRoles.begin(), kRoles.end(), message.role) == kRoles.end()) {
    return invalid_argument("unknown role '" + message.role +
                            "'; roles are system, developer, user, assistant and tool");
  }
  if (message.json.empty()) return Json{{"role", message.role}, {"content", message.content}};
  Json json = LATHE_TRY(parse_json(message.json, "a message", false));
  json["role"] = message.role;
  if (preparation.parse_arguments) parse_tool_arguments(json);
  if (!parts) join_text_parts(json);
  if (!preparation.null_content && json.contains("content") && json["content"].is_null()) json["content"] = "";
  return json;
}

}  // namespace

Result<Json> parse_json(const std::string& text, const char* name, bool want_array) {
  bool too_deep = false;
  const auto note_depth = [&](int depth, Json::parse_event_t, const Json&) { return !(too_deep |= depth > kMaxDepth); };
  Json json = Json::parse(text, note_depth, /*allow_exceptions=*/false);
  if (too_deep)
    return invalid_argument(std::string(name) + " is nested more than " + std::to_string(kMaxDepth) + " levels deep");
  if (json.is_discarded() || (want_array ? !json.is_array() : !json.is_object())) {
    return invalid_argument(std::string(name) + " must be a JSON " + (want_array ? "array" : "object"));
  }
  return json;
}

Result<Json> template_context(std::span<const Message> messages, const RenderOptions& options,
                              const std::string& variables_json, bool parts, const Preparation& preparation) {
  if (messages.empty()) return invalid_argument("messages is empty");
  Json context = LATHE_TRY(parse_json(variables_json, "the template's variables", false));
  context["messages"] = Json::array();
  for (const Message& message : messages)
    context["messages"].push_back(LATHE_TRY(message_json(message, parts, preparation)));
  context["add_generation_prompt"] = options.add_generation_prompt;
  // Defined even when there are none: templates ask `tools is not none`.
  context["tools"] = nullptr;
  context["documents"] = nullptr;
  if (!options.tools_json.empty()) context["tools"] = LATHE_TRY(parse_json(options.tools_json, "tools", true));
  if (options.kwargs_json.empty()) return context;
  const Json kwargs = LATHE_TRY(parse_json(options.kwargs_json, "chat_template_kwargs", false));
  for (const auto& [name, value] : kwargs.items()) context[name] = value;
  return context;
}

}  // namespace lathe::text
