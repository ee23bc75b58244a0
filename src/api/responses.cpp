#include "api/responses.h"

#include <nlohmann/json.hpp>

#include "api/fields.h"

namespace lathe::api {
namespace {

// Text that a client sent may not be UTF-8; a response must be.
std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json head_json(const ResponseHead& head, const char* object) {
  return {{"id", head.id},
          {"object", object},
          {"created", head.created},
          {"model", head.model},
          {"system_fingerprint", "lathe-v" + std::to_string(head.version)}};
}

Json usage_json(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens}};
}

Json message_json(const std::string& text) {
  return {{"role", "assistant"}, {"content", text}};
}

Json or_null(const std::string& text) {
  return text.empty() ? Json(nullptr) : Json(text);
}

Json bytes_of(const std::string& token) {
  Json bytes = Json::array();
  for (const char c : token) bytes.push_back(static_cast<int>(static_cast<unsigned char>(c)));
  return bytes;
}

Json chat_logprobs(const Choice& choice) {
  if (!choice.logprobs) return nullptr;
  Json content = Json::array();
  for (const LogprobEntry& entry : *choice.logprobs) {
    Json top = Json::array();
    for (const auto& [token, logprob] : entry.top)
      top.push_back({{"token", token}, {"logprob", logprob}, {"bytes", bytes_of(token)}});
    content.push_back(
        {{"token", entry.token}, {"logprob", entry.logprob}, {"bytes", bytes_of(entry.token)}, {"top_logprobs", top}});
  }
  return {{"content", content}};
}

Json completion_logprobs(const Choice& choice) {
  if (!choice.logprobs) return nullptr;
  Json tokens = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
  size_t offset = 0, index = 0;
  for (const LogprobEntry& entry : *choice.logprobs) {
    const bool known = index++ >= choice.logprobs_without_value;
    tokens.push_back(entry.token);
    values.push_back(known ? Json(entry.logprob) : Json(nullptr));
    Json top = Json::object();
    for (const auto& [token, logprob] : entry.top) top[token] = logprob;
    tops.push_back(known ? top : Json(nullptr));
    offsets.push_back(offset);
    offset += entry.token.size();
  }
  return {{"tokens", tokens}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", offsets}};
}

Json parsed(const std::string& text) {
  Json json = Json::parse(text, nullptr, false);
  return json.is_object() ? json : Json::object();
}

Json model_json(const std::string& model, int64_t created, int64_t max_context) {
  return {
      {"id", model}, {"object", "model"}, {"created", created}, {"owned_by", "lathe"}, {"max_model_len", max_context}};
}

Json job_json(const store::Job& job) {
  Json json = {{"id", job.id}, {"object", "learn.job"}, {"status", job.state}, {"created_at", job.created_at}};
  if (job.finished_at > 0) json["finished_at"] = job.finished_at;
  const Json result = parsed(job.result_json);  // named: items() of a temporary would outlive it
  for (const auto& [name, value] : result.items()) json[name] = value;
  return json;
}

Json completion_json(const store::Completion& completion) {
  const Json conversation = parsed(completion.conversation_json);
  Json json = {{"id", completion.id},
               {"object", "chat.completion"},
               {"created", static_cast<int64_t>(completion.created_at)},
               {"system_fingerprint", "lathe-v" + std::to_string(completion.version)},
               {"version", completion.version}};
  for (const auto& [name, value] : conversation.items()) json[name] = value;
  json["choices"] = Json::array({{{"index", 0}, {"message", parsed(completion.answer_json)}}});
  json["corrected_by"] = or_null(completion.job_id);
  return json;
}

}  // namespace

std::string assistant_message(const std::string& text) {
  return dump(message_json(text));
}

std::string chat_response(const ResponseHead& head, const std::vector<Choice>& choices, const Usage& usage) {
  Json json = head_json(head, "chat.completion");
  json["choices"] = Json::array();
  for (const Choice& choice : choices) {
    json["choices"].push_back({{"index", json["choices"].size()},
                               {"message", message_json(choice.text)},
                               {"logprobs", chat_logprobs(choice)},
                               {"finish_reason", or_null(choice.finish_reason)}});
  }
  json["usage"] = usage_json(usage);
  return dump(json);
}

std::string completion_response(const ResponseHead& head, const std::vector<Choice>& choices, const Usage& usage) {
  Json json = head_json(head, "text_completion");
  json["choices"] = Json::array();
  for (const Choice& choice : choices) {
    json["choices"].push_back({{"index", json["choices"].size()},
                               {"text", choice.text},
                               {"logprobs", completion_logprobs(choice)},
                               {"finish_reason", or_null(choice.finish_reason)}});
  }
  json["usage"] = usage_json(usage);
  return dump(json);
}

std::string chat_chunk(const ResponseHead& head, const Choice& delta, bool first) {
  Json json = head_json(head, "chat.completion.chunk");
  Json message = Json::object();
  if (first) message["role"] = "assistant";
  if (first || !delta.text.empty()) message["content"] = delta.text;
  json["choices"] = Json::array({{{"index", 0},
                                  {"delta", message},
                                  {"logprobs", chat_logprobs(delta)},
                                  {"finish_reason", or_null(delta.finish_reason)}}});
  return dump(json);
}

std::string completion_chunk(const ResponseHead& head, const Choice& delta) {
  Json json = head_json(head, "text_completion");
  json["choices"] = Json::array({{{"index", 0},
                                  {"text", delta.text},
                                  {"logprobs", completion_logprobs(delta)},
                                  {"finish_reason", or_null(delta.finish_reason)}}});
  return dump(json);
}

std::string usage_chunk(const ResponseHead& head, const Usage& usage, bool chat) {
  Json json = head_json(head, chat ? "chat.completion.chunk" : "text_completion");
  json["choices"] = Json::array();
  json["usage"] = usage_json(usage);
  return dump(json);
}

std::string model_card(const std::string& model, int64_t created, int64_t max_context) {
  return dump(model_json(model, created, max_context));
}

std::string model_list(const std::string& model, int64_t created, int64_t max_context) {
  return dump({{"object", "list"}, {"data", Json::array({model_json(model, created, max_context)})}});
}

std::string token_list(const std::vector<int32_t>& tokens, int64_t max_context) {
  return dump({{"count", tokens.size()}, {"max_model_len", max_context}, {"tokens", tokens}});
}

std::string prompt_text(const std::string& text) {
  return dump({{"prompt", text}});
}

std::string learn_result(const LearnResult& r) {
  Json json = {{"version", r.version},
               {"previous_version", r.previous_version},
               {"steps", r.steps},
               {"graded_tokens", r.graded_tokens},
               {"tokens", r.tokens},
               {"loss_before", r.loss_before},
               {"loss_after", r.loss_after},
               {"seconds", r.seconds},
               {"pause_ms", r.pause_ms},
               {"changed_fraction", r.changed_fraction},
               {"realised_update", r.realised}};
  for (const TensorChange& t : r.tensors) {
    json["tensors"].push_back({{"name", t.name},
                               {"gradient_norm", t.gradient_norm},
                               {"update_norm", t.update_norm},
                               {"limiter", t.limiter},
                               {"changed_fraction", t.changed_fraction},
                               {"realised_update", t.realised}});
  }
  return dump(json);
}

std::string job_body(const store::Job& job) {
  return dump(job_json(job));
}

std::string job_list(const std::vector<store::Job>& jobs) {
  Json data = Json::array();
  for (const store::Job& job : jobs) {
    data.push_back(job_json(job));
    data.back().erase("tensors");  // hundreds of rows each: GET of the one job has them
  }
  return dump({{"object", "list"}, {"data", data}});
}

std::string kept_completion(const store::Completion& completion) {
  return dump(completion_json(completion));
}

std::string completion_list(const std::vector<store::Completion>& completions) {
  Json data = Json::array();
  for (const store::Completion& completion : completions) data.push_back(completion_json(completion));
  return dump({{"object", "list"}, {"data", data}});
}

std::string version_list(const std::vector<store::Version>& versions, int64_t live, int64_t on_disk) {
  Json data = Json::array();
  for (const store::Version& v : versions) {
    data.push_back({{"version", v.version},
                    {"job", or_null(v.job_id)},
                    {"created_at", v.created_at},
                    {"loss", v.loss},
                    {"lr", v.learning_rate},
                    {"changed_fraction", v.changed_fraction},
                    {"synced", v.synced}});
  }
  return dump({{"object", "list"}, {"live", live}, {"on_disk", on_disk}, {"data", data}});
}

std::string sync_body(const SyncResult& r) {
  Json json = {{"object", r.restores ? "rollback" : "sync"}, {"version", r.version}};
  if (r.restores) json["restores"] = *r.restores;
  json["delta_bytes"] = r.delta_bytes;
  json["bytes_written"] = r.bytes_written;
  json["shards_written"] = r.shards_written;
  json["durable_seconds"] = r.durable_seconds;
  json["seconds"] = r.seconds;
  return dump(json);
}

std::string health_body(const Health& h) {
  return dump({{"status", "ok"},
               {"model", h.model},
               {"version", h.version},
               {"synced_version", h.synced_version},
               {"running", h.running},
               {"waiting", h.waiting},
               {"learning", h.learning},
               {"uptime_seconds", h.uptime_seconds}});
}

}  // namespace lathe::api
