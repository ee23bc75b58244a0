#include "api/proxied.h"

#include <nlohmann/json.hpp>

#include "api/fields.h"
#include "store/store.h"

namespace lathe::api {
namespace {

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Whether the member is there and says something else than `usual`.
bool differs(const Json& json, const char* name, const Json& usual) {
  const auto found = json.find(name);
  return found != json.end() && !found->is_null() && *found != usual;
}

// Appends `text` to a string member that may be absent yet.
void append(Json& target, const std::string& name, const Json& text) {
  Json& member = target[name];
  member = (member.is_string() ? member.get<std::string>() : std::string()) + text.get<std::string>();
}

// A call comes in pieces as well: its id and name once, its arguments bit by bit.
void merge_call(Json& calls, const Json& delta) {
  const auto index = delta.find("index");
  if (index == delta.end() || !index->is_number_unsigned()) return;
  if (index->get<size_t>() == calls.size()) calls.push_back({{"function", Json::object()}});
  if (index->get<size_t>() >= calls.size()) return;
  Json& call = calls[index->get<size_t>()];
  for (const char* name : {"id", "type"}) {
    if (delta.contains(name) && delta[name].is_string()) call[name] = delta[name];
  }
  if (!delta.contains("function") || !delta["function"].is_object()) return;
  for (const auto& [name, value] : delta["function"].items()) {
    if (value.is_string()) append(call["function"], name, value);
  }
}

void merge_delta(Json& message, const Json& delta) {
  for (const auto& [name, value] : delta.items()) {
    if (name != "role" && value.is_string()) append(message, name, value);
    if (name != "tool_calls" || !value.is_array()) continue;
    if (!message.contains(name)) message[name] = Json::array();
    for (const Json& call : value) {
      if (call.is_object()) merge_call(message[name], call);
    }
  }
}

// Choice 0 of a response or of a chunk, or null.
const Json* first_choice(const Json& json) {
  if (!json.contains("choices") || !json["choices"].is_array()) return nullptr;
  for (const Json& choice : json["choices"]) {
    if (choice.is_object() && choice.value("index", Json(0)) == 0) return &choice;
  }
  return nullptr;
}

std::string text_member(const Json& json, const char* name) {
  const auto found = json.find(name);
  return found != json.end() && found->is_string() ? found->get<std::string>() : std::string();
}

}  // namespace

std::string with_cache_salt(std::string_view body, int64_t version) {
  Result<Json> json = parse_object(body);
  if (!json.ok()) return std::string(body);
  std::string salt = "lathe-v" + std::to_string(version);
  if (json->contains("cache_salt") && !(*json)["cache_salt"].is_null()) {
    const Json& own = (*json)["cache_salt"];
    if (!own.is_string() || own.get_ref<const std::string&>().empty()) return std::string(body);  // vLLM says why
    salt += ":" + own.get<std::string>();
  }
  (*json)["cache_salt"] = salt;
  return dump(*json);
}

std::optional<std::string> conversation_of(std::string_view chat_body) {
  const Result<Json> json = parse_object(chat_body);
  if (!json.ok() || !json->contains("messages") || !(*json)["messages"].is_array()) return {};
  if (differs(*json, "chat_template", nullptr) || differs(*json, "documents", Json::array()) ||
      differs(*json, "continue_final_message", false) || differs(*json, "add_generation_prompt", true)) {
    return {};
  }
  return conversation_json(*json);
}

std::optional<Answer> answer_of(std::string_view body) {
  const Result<Json> json = parse_object(body);
  if (!json.ok()) return {};
  const Json* choice = first_choice(*json);
  const std::string id = text_member(*json, "id");
  if (id.empty() || !choice || !choice->contains("message") || !(*choice)["message"].is_object()) return {};
  return Answer{id, dump((*choice)["message"])};
}

struct StreamedAnswer::State {
  std::string line, id;
  Json message = {{"role", "assistant"}, {"content", ""}};
  bool done = false;

  // True at the stream's last event.
  bool read_line() {
    std::string_view data = line;
    if (!data.starts_with("data:")) return false;
    data.remove_prefix(5);
    while (!data.empty() && data.front() == ' ') data.remove_prefix(1);
    while (!data.empty() && (data.back() == '\r' || data.back() == ' ')) data.remove_suffix(1);
    if (data == "[DONE]") return true;
    const Result<Json> json = parse_object(data);
    if (!json.ok()) return false;
    if (id.empty()) id = text_member(*json, "id");
    const Json* choice = first_choice(*json);
    if (choice && choice->contains("delta") && (*choice)["delta"].is_object()) merge_delta(message, (*choice)["delta"]);
    return false;
  }
};

StreamedAnswer::StreamedAnswer() : state_(std::make_unique<State>()) {}
StreamedAnswer::~StreamedAnswer() = default;
StreamedAnswer::StreamedAnswer(StreamedAnswer&&) noexcept = default;

std::optional<Answer> StreamedAnswer::read(std::string_view piece) {
  State& state = *state_;
  for (size_t end = 0; !state.done && !piece.empty(); piece.remove_prefix(end)) {
    end = std::min(piece.find('\n'), piece.size());
    state.line += piece.substr(0, end);
    if (state.line.size() > store::Store::kMaxCompletionBytes) state.done = true;  // it would not be kept
    if (end == piece.size()) continue;
    ++end;
    const bool last = state.read_line();
    state.line.clear();
    if (!last) continue;
    state.done = true;
    if (state.id.empty()) return {};
    return Answer{state.id, dump(state.message)};
  }
  return {};
}

}  // namespace lathe::api
