#include "api/responses.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "api/fields.h"
#include "http/error_body.h"

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

// Error codes are stored by name.
Code code_named(std::string name) {
  std::replace(name.begin(), name.end(), '_', ' ');
  for (int code = 0; code <= static_cast<int>(Code::kInternal); ++code) {
    if (code_name(static_cast<Code>(code)) == name) return static_cast<Code>(code);
  }
  return Code::kInternal;
}

constexpr size_t kShown = 200;  // bytes of a text in a list

// Whole characters of the first bytes.
std::string beginning(const std::string& text) {
  if (text.size() <= kShown) return text;
  size_t end = kShown;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

std::string content_of(const Json& message) {
  if (!message.is_object() || !message.contains("content")) return "";
  const Json& content = message["content"];
  return content.is_string() ? content.get<std::string>() : content.is_null() ? "" : content.dump();
}

// The beginning of what one example asked and answered.
Json taught_json(const Json& example) {
  if (!example.is_object()) return nullptr;
  if (example.contains("completion")) {
    return {{"completion", example["completion"]},
            {"answer", beginning(example.contains("answer") && example["answer"].is_string()
                                     ? example["answer"].get<std::string>()
                                     : "")}};
  }
  Json taught = {{"question", ""}, {"answer", ""}};
  if (!example.contains("messages") || !example["messages"].is_array()) return taught;
  for (const Json& message : example["messages"]) {
    const std::string role = message.is_object() && message.contains("role") && message["role"].is_string()
                                 ? message["role"].get<std::string>()
                                 : "";
    if (role == "user") taught["question"] = beginning(content_of(message));
    if (role == "assistant") taught["answer"] = beginning(content_of(message));
  }
  return taught;
}

Json job_json(const store::Job& job, int64_t durable_version) {
  const store::Learned& l = job.learned;
  const bool finished = job.finished_at > 0;
  Json json = {{"id", job.id}, {"object", "learn.job"}, {"status", job.state}, {"created_at", job.created_at}};
  if (finished) json["finished_at"] = job.finished_at;
  const Json request = parsed(job.request_json);
  const bool several = request.contains("examples") && request["examples"].is_array();
  json["examples"] = several ? request["examples"].size() : 1;
  json["taught"] = taught_json(several && !request["examples"].empty() ? request["examples"][0] : request);
  if (!job.relearns.empty()) json["relearns"] = job.relearns;
  if (!job.relearned_by.empty()) json["relearned_by"] = job.relearned_by;
  // A job of a store that a crash cut off may have no figures.
  if (finished && l.tokens > 0) {
    json["version"] = l.version;
    json["previous_version"] = l.previous_version;
    json["durable"] =
        job.lost_versions == 0 && job.pending_versions == 0 && (l.steps > 0 || l.version <= durable_version);
    json["steps"] = l.steps;
    json["graded_tokens"] = l.graded_tokens;
    json["tokens"] = l.tokens;
    json["loss_before"] = l.loss_before;
    json["loss_after"] = l.loss_after;
    json["seconds"] = l.seconds;
    json["pause_ms"] = l.pause_ms;
    json["changed_fraction"] = l.changed_fraction;
    json["realised_update"] = l.realised;
  }
  if (job.lost_versions > 0) json["lost_versions"] = job.lost_versions;
  if (!job.error.empty()) {
    const Error error{code_named(job.error_code), job.error};
    json["error"] = Json::parse(http::error_body(error).json)["error"];
  }
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
    json["choices"].push_back({{"index", choice.index},
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
    json["choices"].push_back({{"index", choice.index},
                               {"text", choice.text},
                               {"logprobs", completion_logprobs(choice)},
                               {"finish_reason", or_null(choice.finish_reason)}});
  }
  json["usage"] = usage_json(usage);
  return dump(json);
}

std::string chat_chunk(const ResponseHead& head, const Choice& delta, bool first, const std::optional<Usage>& usage) {
  Json json = head_json(head, "chat.completion.chunk");
  Json message = Json::object();
  if (first) message["role"] = "assistant";
  if (first || !delta.text.empty()) message["content"] = delta.text;
  json["choices"] = Json::array({{{"index", delta.index},
                                  {"delta", message},
                                  {"logprobs", chat_logprobs(delta)},
                                  {"finish_reason", or_null(delta.finish_reason)}}});
  if (usage) json["usage"] = usage_json(*usage);
  return dump(json);
}

std::string completion_chunk(const ResponseHead& head, const Choice& delta, const std::optional<Usage>& usage) {
  Json json = head_json(head, "text_completion");
  json["choices"] = Json::array({{{"index", delta.index},
                                  {"text", delta.text},
                                  {"logprobs", completion_logprobs(delta)},
                                  {"finish_reason", or_null(delta.finish_reason)}}});
  if (usage) json["usage"] = usage_json(*usage);
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

std::string job_body(const store::Job& job, int64_t durable_version, const std::vector<store::TensorChange>& tensors) {
  Json json = job_json(job, durable_version);
  for (const store::TensorChange& t : tensors) {
    json["tensors"].push_back({{"name", t.name},
                               {"gradient_norm", t.gradient_norm},
                               {"update_norm", t.update_norm},
                               {"limiter", t.limiter},
                               {"changed_fraction", t.changed_fraction},
                               {"realised_update", t.realised}});
  }
  return dump(json);
}

std::string job_list(const std::vector<store::Job>& jobs, bool more, int64_t durable_version) {
  Json data = Json::array();
  for (const store::Job& job : jobs) data.push_back(job_json(job, durable_version));
  return dump({{"object", "list"}, {"data", data}, {"has_more", more}});
}

std::string kept_completion(const store::Completion& completion) {
  return dump(completion_json(completion));
}

std::string completion_list(const std::vector<store::Completion>& completions) {
  Json data = Json::array();
  for (const store::Completion& completion : completions) data.push_back(completion_json(completion));
  return dump({{"object", "list"}, {"data", data}});
}

std::string version_list(const VersionList& list) {
  Json data = Json::array(), lost = Json::array();
  for (const VersionEntry& v : list.entries) {
    Json json = {{"version", v.version}, {"kind", v.kind}, {"durable", v.durable}, {"created_at", v.created_at}};
    if (v.steps > 0) {
      json["first"] = v.first;
      json["steps"] = v.steps;
      json["jobs"] = v.jobs;
      json["loss"] = v.loss;
      json["lr"] = v.learning_rate;
      json["changed_fraction"] = v.changed_fraction;
    }
    if (v.restores) json["restores"] = *v.restores;
    if (!v.note.empty()) json["note"] = v.note;
    data.push_back(std::move(json));
  }
  for (const store::Version& v : list.lost)
    lost.push_back({{"version", v.version}, {"job", or_null(v.job_id)}, {"created_at", v.created_at}});
  return dump({{"object", "list"},
               {"live", list.live},
               {"on_disk", list.on_disk},
               {"data", data},
               {"has_more", list.more},
               {"lost", lost}});
}

std::string sync_body(const SyncResult& r) {
  Json json = {{"object", !r.restores ? "sync" : r.redo ? "redo" : "rollback"}, {"version", r.version}};
  if (r.restores) json["restores"] = *r.restores;
  json["delta_bytes"] = r.delta_bytes;
  json["bytes_written"] = r.bytes_written;
  json["shards_written"] = r.shards_written;
  json["durable_seconds"] = r.durable_seconds;
  json["seconds"] = r.seconds;
  return dump(json);
}

std::string health_body(const Health& h) {
  return dump({{"status", h.torn ? "torn" : "ok"},
               {"model", h.model},
               {"version", h.version},
               {"synced_version", h.synced_version},
               {"running", h.running},
               {"waiting", h.waiting},
               {"learning", h.learning},
               {"lost", h.lost},
               {"uptime_seconds", h.uptime_seconds}});
}

}  // namespace lathe::api
