#include "api/requests.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "api/fields.h"
#include "api/generation.h"

namespace lathe::api {

namespace {

// What a template would show as a placeholder, or not at all.
Status refuse_media(const Json& parts, const std::string& name) {
  for (size_t i = 0; i < parts.size(); ++i) {
    const Json& part = parts[i];
    if (!part.is_object() || !part.contains("type") || !part["type"].is_string()) continue;
    const std::string type = part["type"].get<std::string>();
    for (const char* medium : {"image", "audio", "video", "file"}) {
      if (type.find(medium) != std::string::npos)
        return invalid_argument("'" + name + ".content[" + std::to_string(i) + "]' is of type '" + type +
                                "'; this server reads text only");
    }
  }
  return {};
}

// A message with content in parts, tool calls or other fields keeps its JSON; the template decides what it shows.
Result<text::Message> parse_message(const Json& json, const std::string& name) {
  if (!json.is_object()) return invalid_argument("'" + name + "' must be an object");
  Fields fields(json);
  text::Message message{.role = fields.text("role").value_or("")};
  LATHE_TRY(fields.status().at(name));
  if (message.role.empty()) return invalid_argument("'" + name + ".role' is missing");
  const bool has_content = fields.has("content");
  if (has_content && !json["content"].is_string() && !json["content"].is_array()) {
    return invalid_argument("'" + name + ".content' must be a string or a list of parts");
  }
  if (has_content && json["content"].is_array()) LATHE_TRY(refuse_media(json["content"], name));
  if (!has_content && !json.contains("tool_calls")) return invalid_argument("'" + name + ".content' is missing");
  if (has_content && json["content"].is_string()) message.content = json["content"].get<std::string>();
  Json rest = json;
  rest.erase("weight");
  const bool plain = rest.size() == 2 && has_content && json["content"].is_string();
  if (!plain) message.json = rest.dump();
  return message;
}

Result<std::vector<text::Message>> parse_messages(const Json& json, const std::string& list,
                                                  const std::string& prefix = "") {
  const std::string name = prefix + list;
  if (!json.contains(list)) return invalid_argument("'" + name + "' is missing");
  if (!json[list].is_array() || json[list].empty())
    return invalid_argument("'" + name + "' must be a list that is not empty");
  std::vector<text::Message> messages;
  for (const Json& entry : json[list]) {
    messages.push_back(LATHE_TRY(parse_message(entry, name + "[" + std::to_string(messages.size()) + "]")));
  }
  return messages;
}

void read_render(Fields& fields, text::RenderOptions& render) {
  if (fields.has("tools")) {
    if (!fields.at("tools").is_array()) return fields.complain("tools", "must be a list");
    if (!fields.at("tools").empty()) render.tools_json = fields.at("tools").dump();
  }
  if (fields.has("chat_template_kwargs")) {
    if (!fields.at("chat_template_kwargs").is_object())
      return fields.complain("chat_template_kwargs", "must be an object");
    render.kwargs_json = fields.at("chat_template_kwargs").dump();
  }
}

void refuse_special_tokens(Fields& fields) {
  if (fields.flag("add_special_tokens").value_or(false))
    fields.complain("add_special_tokens", "cannot be true here; write them into the prompt");
}

Result<ChatRequest> read_chat(const Json& json) {
  Fields fields(json);
  ChatRequest request;
  fields.has("messages");
  request.messages = LATHE_TRY(parse_messages(json, "messages"));
  read_generation(fields, request.generation);
  read_render(fields, request.render);
  request.generation.logprobs = fields.flag("logprobs").value_or(false);
  request.generation.top_logprobs = static_cast<int>(fields.integer("top_logprobs", 0, 20).value_or(0));
  if (request.generation.top_logprobs > 0 && !request.generation.logprobs)
    fields.complain("top_logprobs", "needs \"logprobs\": true");
  request.render.add_generation_prompt = fields.flag("add_generation_prompt").value_or(true);
  if (fields.flag("add_special_tokens").value_or(false))
    fields.complain("add_special_tokens", "cannot be true here: the chat template writes them");
  refuse_other_fields(fields);
  LATHE_TRY(fields.status());
  request.conversation_json = conversation_json(json);
  LATHE_TRY(request.generation.sampling.validate());
  return request;
}

// "prompt": a text, a list of texts, a list of ids, or a list of lists of ids.
Result<std::vector<Prompt>> parse_prompts(const Json& json) {
  const Error wrong =
      invalid_argument("'prompt' must be a string, a list of strings, a list of token ids, or a list of such lists");
  const auto ids_of = [](const Json& list, std::vector<int32_t>& ids) {
    for (const Json& id : list) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) return false;
      ids.push_back(id.get<int32_t>());
    }
    return !ids.empty();
  };
  if (!json.contains("prompt")) return invalid_argument("'prompt' is missing");
  const Json& prompt = json["prompt"];
  if (prompt.is_string()) return std::vector<Prompt>{prompt.get<std::string>()};
  if (!prompt.is_array() || prompt.empty() || prompt.size() > (prompt[0].is_number() ? size_t{1} << 24 : 64))
    return wrong;
  std::vector<Prompt> prompts;
  if (prompt[0].is_number()) {
    std::vector<int32_t> ids;
    if (!ids_of(prompt, ids)) return wrong;
    return std::vector<Prompt>{ids};
  }
  for (const Json& entry : prompt) {
    std::vector<int32_t> ids;
    if (entry.is_string()) {
      prompts.emplace_back(entry.get<std::string>());
    } else if (entry.is_array() && ids_of(entry, ids)) {
      prompts.emplace_back(std::move(ids));
    } else {
      return wrong;
    }
  }
  return prompts;
}

// Which assistant turns are learned: per-message "weight", then "turns": "last", "all" or a list of indices. With
// neither, all of them or the last one.
Result<std::vector<float>> parse_turns(const Json& json, const Json* turns, bool all_by_default) {
  std::vector<float> weights;
  bool weighted = false;
  for (const Json& message : json["messages"]) {
    if (message.value("role", "") != "assistant") continue;
    float weight = 1;
    if (message.contains("weight") && !message["weight"].is_null()) {
      if (!message["weight"].is_number() || message["weight"].get<double>() < 0)
        return invalid_argument("'weight' of a message must be a number >= 0");
      weight = message["weight"].get<float>();
      weighted = true;
    }
    weights.push_back(weight);
  }
  if (weights.empty()) return invalid_argument("the conversation has no assistant turn to learn");
  const auto keep_only = [&](const std::vector<size_t>& kept) {
    for (size_t i = 0; i < weights.size(); ++i) {
      if (std::find(kept.begin(), kept.end(), i) == kept.end()) weights[i] = 0;
    }
  };
  const bool all = turns ? *turns == "all" : weighted || all_by_default;
  if (all) return weights;
  if (!turns || *turns == "last") {
    keep_only({weights.size() - 1});
    return weights;
  }
  std::vector<size_t> kept;
  for (const Json& turn : *turns) {
    if (!turns->is_array() || !turn.is_number_integer() || turn.get<int64_t>() < 0 ||
        turn.get<size_t>() >= weights.size()) {
      return invalid_argument("'turns' must be \"last\", \"all\" or a list of indices of assistant turns, 0 to " +
                              std::to_string(weights.size() - 1));
    }
    kept.push_back(turn.get<size_t>());
  }
  keep_only(kept);
  return weights;
}

Result<LearnExample> read_example(const Json& json, Fields& fields, bool all_by_default = false) {
  LearnExample example;
  example.messages = LATHE_TRY(parse_messages(json, "messages"));
  const bool has_turns = fields.has("turns");
  example.turn_weights = LATHE_TRY(parse_turns(json, has_turns ? &json["turns"] : nullptr, all_by_default));
  read_render(fields, example.render);
  LATHE_TRY(fields.status());
  const Json canonical = {
      {"messages", json["messages"]}, {"turns", example.turn_weights}, {"tools", json.value("tools", Json())}};
  example.json = canonical.dump();
  return example;
}

// {"completion": ID, "answer": TEXT}: the conversation of that completion with another answer.
Result<LearnExample> read_correction(Fields& fields, const FindConversation& find) {
  const auto id = fields.text("completion"), answer = fields.text("answer");
  LATHE_TRY(fields.status());
  if (!answer || answer->find_first_not_of(" \t\r\n") == std::string::npos)
    return invalid_argument("'answer' is missing: what the model should have said");
  const std::string found = LATHE_TRY(find(*id));
  Json conversation = LATHE_TRY(parse_object(found, "the kept conversation"));
  conversation["messages"].push_back({{"role", "assistant"}, {"content", *answer}});
  conversation["turns"] = "last";
  Fields conversation_fields(conversation);
  LearnExample example = LATHE_TRY(read_example(conversation, conversation_fields));
  example.completion = *id;
  return example;
}

// An answer of nothing is a slip: it would teach the model to end at once. One that calls tools says nothing and does
// something.
Status refuse_empty_answers(const LearnExample& example) {
  size_t turn = 0;
  for (size_t i = 0; i < example.messages.size(); ++i) {
    const text::Message& message = example.messages[i];
    if (message.role != "assistant" || example.turn_weights[turn++] <= 0) continue;
    const bool blank = message.content.find_first_not_of(" \t\r\n") == std::string::npos;
    if (blank && message.json.empty())
      return invalid_argument("'messages[" + std::to_string(i) + "].content' is empty: there is nothing to teach");
  }
  return {};
}

// A conversation, or a correction.
Result<LearnExample> read_lesson(const Json& json, Fields& fields, const FindConversation& find) {
  if (fields.has("completion")) return read_correction(fields, find);
  fields.has("messages");
  LearnExample example = LATHE_TRY(read_example(json, fields));
  LATHE_TRY(refuse_empty_answers(example));
  return example;
}

}  // namespace

Result<int64_t> parse_limit(const std::string& text) {
  int64_t limit = 20;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), limit);
  const bool whole = text.empty() || (error == std::errc() && end == text.data() + text.size());
  if (!whole || limit < 1 || limit > 100) return invalid_argument("'limit' must be an integer from 1 to 100");
  return limit;
}

Result<std::optional<int64_t>> parse_before(const std::string& text) {
  if (text.empty()) return std::optional<int64_t>();
  int64_t before = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), before);
  if (error != std::errc() || end != text.data() + text.size() || before < 0)
    return invalid_argument("'before' must be the number of a version");
  return std::optional(before);
}

Result<ChatRequest> parse_chat(std::string_view body) {
  const Json json = LATHE_TRY(parse_object(body));
  return read_chat(json);
}

Result<CompletionRequest> parse_completion(std::string_view body) {
  const Json json = LATHE_TRY(parse_object(body));
  Fields fields(json);
  CompletionRequest request;
  fields.has("prompt");
  request.prompts = LATHE_TRY(parse_prompts(json));
  read_generation(fields, request.generation);
  request.echo = fields.flag("echo").value_or(false);
  if (const auto top = fields.integer("logprobs", 0, 20)) {
    request.generation.logprobs = true;
    request.generation.top_logprobs = static_cast<int>(*top);
  }
  refuse_special_tokens(fields);
  refuse_other_fields(fields);
  LATHE_TRY(fields.status());
  LATHE_TRY(request.generation.sampling.validate());
  return request;
}

Result<TokenizeRequest> parse_tokenize(std::string_view body) {
  const Json json = LATHE_TRY(parse_object(body));
  TokenizeRequest request;
  if (json.contains("messages")) {
    request.input = LATHE_TRY(read_chat(json));
    return request;
  }
  Fields fields(json);
  const auto prompt = fields.text("prompt");
  fields.text("model");
  refuse_special_tokens(fields);
  refuse_other_fields(fields);
  LATHE_TRY(fields.status());
  if (!prompt) return invalid_argument("'prompt' or 'messages' is missing");
  request.input = *prompt;
  return request;
}

Result<DetokenizeRequest> parse_detokenize(std::string_view body) {
  const Json json = LATHE_TRY(parse_object(body));
  Fields fields(json);
  DetokenizeRequest request;
  if (!fields.has("tokens")) return invalid_argument("'tokens' is missing");
  request.tokens = fields.token_ids("tokens");
  fields.text("model");
  refuse_other_fields(fields);
  LATHE_TRY(fields.status());
  return request;
}

Result<std::optional<int64_t>> parse_rollback(std::string_view body) {
  if (body.empty()) return std::optional<int64_t>();
  const Json json = LATHE_TRY(parse_object(body));
  Fields fields(json);
  const auto version = fields.integer("version", 0, INT64_MAX);
  fields.refuse_unknown();
  LATHE_TRY(fields.status());
  return version;
}

Result<LearnRequest> parse_learn(std::string_view body, const FindConversation& find) {
  const Json json = LATHE_TRY(parse_object(body));
  Fields fields(json);
  LearnRequest request;
  request.steps = fields.integer("steps", 1, 10'000);
  request.learning_rate = fields.number("lr");
  request.until_loss = fields.number("until_loss");
  request.wait = fields.flag("wait").value_or(true);
  request.durable = fields.flag("durable").value_or(false);
  const std::string context = fields.text("context").value_or("frozen");
  if (context != "frozen" && context != "exact") fields.complain("context", "must be \"frozen\" or \"exact\"");
  request.context = context == "exact" ? data::ContextMode::kExact : data::ContextMode::kFrozen;
  if (const auto report = fields.text("report")) {
    if (*report != "tensors") fields.complain("report", "must be \"tensors\"");
    request.report_tensors = true;
  }
  if (request.learning_rate && (*request.learning_rate <= 0 || *request.learning_rate > 1))
    fields.complain("lr", "must be in (0, 1]");
  if (fields.has("examples")) {
    const Json& examples = fields.at("examples");
    if (!examples.is_array() || examples.empty() || examples.size() > 256)
      return invalid_argument("'examples' must be a list of 1 to 256 conversations");
    for (const Json& entry : examples) {
      if (!entry.is_object()) return invalid_argument("'examples' must hold objects with 'messages'");
      Fields example_fields(entry);
      request.examples.push_back(LATHE_TRY(
          read_lesson(entry, example_fields, find).at("examples[" + std::to_string(request.examples.size()) + "]")));
      example_fields.refuse_unknown();
      LATHE_TRY(example_fields.status());
    }
  } else {
    request.examples.push_back(LATHE_TRY(read_lesson(json, fields, find)));
  }
  fields.refuse_unknown();
  LATHE_TRY(fields.status());
  return request;
}

Result<LearnExample> parse_training_line(std::string_view line) {
  const Json json = LATHE_TRY(parse_object(line, "the line"));
  Fields fields(json);
  LearnExample example = LATHE_TRY(read_example(json, fields, /*all_by_default=*/true));
  return example;
}

namespace {

// The prompt followed by one of the two answers; only the answer is graded.
Result<LearnExample> with_answer(LearnExample prompt, const Json& json, const std::string& list) {
  for (text::Message& message : LATHE_TRY(parse_messages(json, list))) {
    if (message.role != "assistant") return invalid_argument("'" + list + "' may hold assistant messages only");
    prompt.messages.push_back(std::move(message));
    prompt.turn_weights.push_back(1);
  }
  return prompt;
}

}  // namespace

Result<PreferencePair> parse_preference_line(std::string_view line) {
  const Json json = LATHE_TRY(parse_object(line, "the line"));
  if (!json.contains("input") || !json["input"].is_object()) {
    return invalid_argument(
        "'input' is missing; a line of preferences is {\"input\": {\"messages\": [...]}, \"preferred_output\": [...], "
        "\"non_preferred_output\": [...]}");
  }
  LearnExample prompt{.messages = LATHE_TRY(parse_messages(json["input"], "messages", "input."))};
  for (const text::Message& message : prompt.messages) {
    if (message.role == "assistant") prompt.turn_weights.push_back(0);
  }
  Fields input(json["input"]);
  read_render(input, prompt.render);
  LATHE_TRY(input.status().at("input"));
  PreferencePair pair;
  pair.preferred = LATHE_TRY(with_answer(prompt, json, "preferred_output"));
  pair.rejected = LATHE_TRY(with_answer(prompt, json, "non_preferred_output"));
  if (json["preferred_output"] == json["non_preferred_output"])
    return invalid_argument("'preferred_output' and 'non_preferred_output' are the same");
  return pair;
}

}  // namespace lathe::api
