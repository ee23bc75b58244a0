#include "text/text.h"

#include <nlohmann/json.hpp>

#include "delta/other_formats.h"
#include "text/turn_spans.h"

namespace lathe::text {
namespace {

using Json = nlohmann::ordered_json;

// The file as a JSON object; an absent file is an empty one.
Result<Json> read_object(io::Env& env, const std::string& path) {
  if (!LATHE_TRY(env.exists(path))) return Json::object();
  const std::string text = LATHE_TRY(io::read_text(env, path));
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return corruption(path + " is not a JSON object");
  return json;
}

// "chat_template" is a string, or a list of {name, template} of which "default" is meant.
std::string template_of(const Json& config) {
  const auto found = config.find("chat_template");
  if (found == config.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return "";
  for (const Json& entry : *found) {
    const auto text = [&](const char* field) {
      return entry.contains(field) && entry[field].is_string() ? entry[field].get<std::string>() : std::string();
    };
    if (entry.is_object() && text("name") == "default") return text("template");
  }
  return "";
}

// bos_token, eos_token ... as the template knows them: plain strings; files may wrap them in
// {"content": ...}.
Json special_variables(const Json& config, const Json& special_map) {
  Json variables = Json::object();
  for (const Json* source : {&special_map, &config}) {
    for (const auto& [name, value] : source->items()) {
      if (name == "extra_special_tokens" && value.is_object())
        variables.update(special_variables(value, Json::object()));
      if (!name.ends_with("_token")) continue;
      if (value.is_string()) variables[name] = value;
      if (value.is_object() && value.contains("content")) variables[name] = value["content"];
    }
  }
  return variables;
}

}  // namespace

Result<Text> Text::load(io::Env& env, const std::string& directory) {
  Text text;
  const std::string path = directory + "/tokenizer.json";
  if (!LATHE_TRY(env.exists(path))) return delta::no_tokenizer(env, directory);
  const std::string tokenizer_json = LATHE_TRY(io::read_text(env, path));
  text.tokenizer_ = LATHE_TRY(Tokenizer::parse(tokenizer_json).at(path));

  const Json config = LATHE_TRY(read_object(env, directory + "/tokenizer_config.json"));
  const Json special_map = LATHE_TRY(read_object(env, directory + "/special_tokens_map.json"));
  std::string source = template_of(config);
  const std::string jinja = directory + "/chat_template.jinja";
  if (LATHE_TRY(env.exists(jinja))) source = LATHE_TRY(io::read_text(env, jinja));
  if (source.empty()) return text;

  std::vector<std::string> special;
  for (const AddedToken& token : text.tokenizer_.added_tokens()) {
    if (token.special) special.push_back(token.text);
  }
  text.template_ = LATHE_TRY(
      ChatTemplate::create(source, special_variables(config, special_map).dump(), std::move(special)).at(directory));
  return text;
}

Result<const ChatTemplate*> Text::chat_template() const {
  if (!template_)
    return unsupported(
        "the model directory has no chat template; use /v1/completions, or add "
        "chat_template.jinja");
  return &*template_;
}

Result<std::vector<TokenId>> Text::prompt(std::span<const Message> messages, const RenderOptions& options) const {
  const ChatTemplate* chat = LATHE_TRY(chat_template());
  const std::string rendered = LATHE_TRY(chat->render(messages, options));
  Encoding encoding = LATHE_TRY(tokenizer_.encode(rendered));
  return std::move(encoding.ids);
}

Result<GradedTokens> Text::graded(std::span<const Message> messages, std::span<const float> turn_weights,
                                  const RenderOptions& options) const {
  const ChatTemplate* chat = LATHE_TRY(chat_template());
  const Conversation conversation = LATHE_TRY(chat->render_with_spans(messages, options));
  LATHE_TRY(check_turn_weights(conversation.assistant.size(), turn_weights));
  Encoding encoding = LATHE_TRY(tokenizer_.encode(conversation.text));
  GradedTokens graded{.ids = std::move(encoding.ids)};
  graded.weights.resize(graded.ids.size());
  bool any = false;
  size_t turn = 0;
  for (size_t t = 0; t < graded.ids.size(); ++t) {
    const ByteSpan token = encoding.spans[t];
    while (turn < conversation.assistant.size() && conversation.assistant[turn].end <= token.begin) ++turn;
    if (turn == conversation.assistant.size()) break;
    if (token.end <= conversation.assistant[turn].begin) continue;
    graded.weights[t] = turn_weights[turn];
    any |= graded.weights[t] > 0;
  }
  if (!any) return nothing_graded();
  return graded;
}

}  // namespace lathe::text
