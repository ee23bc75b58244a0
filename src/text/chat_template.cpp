#include "text/chat_template.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "text/shim.h"
#include "text/template_context.h"
#include "text/turn_spans.h"

namespace lathe::text {
namespace {

constexpr std::array<Preparation, 4> kPreparations = {{{true, true}, {true, false}, {false, true}, {false, false}}};

Result<std::string> render_context(const lathe_template* handle, const Json& context, bool mark_generation = false) {
  // Invalid UTF-8 in a message would make dump() throw; it is replaced, and the tokenizer never
  // sees it.
  const std::string text = context.dump(-1, ' ', false, Json::error_handler_t::replace);
  ShimBuffer error, out;
  LATHE_TRY(shim_status(lathe_template_render(handle, bytes(text), text.size(), mark_generation ? 1 : 0, out.out(),
                                              error.out()),
                        error)
                .at("chat template"));
  return std::string(out.view());
}

// Whether the template prints the text of content given in parts, rather than refusing it or
// printing the list.
bool takes_parts(const lathe_template* handle, const std::string& variables_json) {
  const Message probe{.role = "user", .json = R"({"role": "user", "content": [{"type": "text", "text": "PROBE"}]})"};
  const auto context =
      template_context(std::span(&probe, 1), {.add_generation_prompt = false}, variables_json, true, {});
  if (!context.ok()) return false;
  const auto rendered = render_context(handle, *context);
  return rendered.ok() && rendered->find("PROBE") != std::string::npos &&
         rendered->find("'text'") == std::string::npos && rendered->find("\"text\"") == std::string::npos;
}

bool probe_ends_turns(const lathe_template* handle, const std::string& variables_json,
                      std::span<const std::string> special) {
  const std::array<Message, 2> probe = {{{.role = "user", .content = "Hello"}, {.role = "assistant", .content = "Hi"}}};
  const auto context = template_context(probe, {.add_generation_prompt = false}, variables_json, true, {});
  return context.ok() &&
         ends_turns(*context, special, [handle](const Json& changed) { return render_context(handle, changed); });
}

}  // namespace

struct ChatTemplate::Prepared {
  Json context;
  std::string text;
};

void ChatTemplate::Release::operator()(lathe_template* handle) const {
  lathe_template_release(handle);
}

Result<ChatTemplate> ChatTemplate::create(std::string_view source, std::string variables_json,
                                          std::vector<std::string> special) {
  ChatTemplate out;
  ShimBuffer error;
  lathe_template* handle = nullptr;
  LATHE_TRY(shim_status(lathe_template_create(bytes(source), source.size(), &handle, error.out()), error)
                .at("chat template"));
  out.handle_.reset(handle);
  LATHE_TRY(parse_json(variables_json, "the template's variables", false));
  out.variables_json_ = std::move(variables_json);
  out.special_ = std::move(special);
  std::erase(out.special_, "");
  std::sort(out.special_.begin(), out.special_.end(), [](const auto& a, const auto& b) { return a.size() > b.size(); });
  out.marks_generation_ = source.find("endgeneration") != std::string_view::npos;
  out.takes_parts_ = takes_parts(handle, out.variables_json_);
  out.ends_turns_ = probe_ends_turns(handle, out.variables_json_, out.special_);
  return out;
}

Result<ChatTemplate::Prepared> ChatTemplate::prepare(std::span<const Message> messages,
                                                     const RenderOptions& options) const {
  Error first;
  Json last;
  for (const Preparation& preparation : kPreparations) {
    Json context = LATHE_TRY(template_context(messages, options, variables_json_, takes_parts_, preparation));
    if (context == last) continue;
    Result<std::string> text = render_context(handle_.get(), context);
    if (text.ok()) return Prepared{std::move(context), std::move(*text)};
    if (last.is_null()) first = text.error();
    last = std::move(context);
  }
  return first;
}

Result<std::string> ChatTemplate::render(std::span<const Message> messages, const RenderOptions& options) const {
  return LATHE_TRY(prepare(messages, options)).text;
}

Result<Conversation> ChatTemplate::render_with_spans(std::span<const Message> messages,
                                                     const RenderOptions& options) const {
  RenderOptions without_prompt = options;
  without_prompt.add_generation_prompt = false;
  Prepared prepared = LATHE_TRY(prepare(messages, without_prompt));
  Conversation conversation;
  if (marks_generation_) {
    const std::string marked = LATHE_TRY(render_context(handle_.get(), prepared.context, /*mark_generation=*/true));
    conversation.assistant = LATHE_TRY(marked_spans(prepared.text, marked));
  }
  if (conversation.assistant.empty()) {
    const auto render = [this](const Json& context) { return render_context(handle_.get(), context); };
    conversation.assistant = LATHE_TRY(nonce_spans(prepared.text, prepared.context, special_, render));
    if (ends_turns_) include_terminators(prepared.text, special_, conversation.assistant);
  }
  LATHE_TRY(check_spans(prepared.text, prepared.context["messages"], conversation.assistant));
  conversation.text = std::move(prepared.text);
  return conversation;
}

}  // namespace lathe::text
