#include "daemon/service.h"

#include <algorithm>

#include "daemon/prompt_tokens.h"
#include "daemon/random_id.h"
#include "http/error_body.h"
#include "http/respond.h"

namespace lathe::daemon {
namespace {

using http::respond;

int64_t unix_seconds(std::chrono::system_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::seconds>(time.time_since_epoch()).count();
}

}  // namespace

Service::Service(const text::Text& text, const model::ModelConfig& model, engine::Engine& engine, store::Store& store,
                 Options options)
    : text_(text), model_(model), engine_(engine), store_(store), options_(std::move(options)) {}

void Service::add_routes(http::Server& server) {
  using http::Request;
  const auto created = unix_seconds(started_);
  for (const char* path : {"/healthz", "/health"})  // the second is vLLM's and llama.cpp's
    server.route("GET", path, [this](const Request&) { return http::Response{.body = health()}; });
  server.route("GET", "/v1/models", [this, created](const Request&) {
    return http::Response{.body = api::model_list(options_.model_name, created, options_.max_context)};
  });
  server.route("GET", "/v1/models/**", [this, created](const Request& request) {
    const Status known = check_model(request.argument);
    return known.ok() ? http::Response{.body = api::model_card(options_.model_name, created, options_.max_context)}
                      : respond(known.error());
  });
  server.route("POST", "/v1/chat/completions", [this](const Request& request) { return chat(request); });
  server.route("POST", "/v1/completions", [this](const Request& request) { return completion(request); });
}

Status Service::check_model(const std::string& name) const {
  if (name.empty() || name == options_.model_name) return {};
  return not_found("the model '" + name + "' is not served here; this server serves '" + options_.model_name + "'");
}

api::ResponseHead Service::head(const char* prefix) const {
  return {.id = random_id(prefix),
          .model = options_.model_name,
          .created = unix_seconds(std::chrono::system_clock::now()),
          .version = options_.version()};
}

std::string Service::health() const {
  const engine::EngineStats stats = engine_.stats();
  api::Health health = options_.health();
  health.running = stats.running;
  health.waiting = stats.waiting;
  return api::health_body(health);
}

// Clients ask for as many tokens as their largest model can give; the answer gets what is left of this one's context.
Result<engine::Request> Service::engine_request(std::vector<int32_t> prompt, const api::GenerationRequest& request,
                                                int64_t choice, std::optional<int64_t> default_max_tokens) const {
  const auto length = static_cast<int64_t>(prompt.size());
  const int64_t room = options_.max_context - length;
  const int64_t wanted = request.max_tokens.value_or(default_max_tokens.value_or(std::max<int64_t>(1, room)));
  if (wanted > 0 && room < 1) {
    return invalid_argument("the prompt has " + std::to_string(length) + " tokens, and the context is " +
                            std::to_string(options_.max_context) + ": there is no room for an answer");
  }
  if (request.min_tokens > std::min(wanted, room)) {
    return invalid_argument("'min_tokens' is " + std::to_string(request.min_tokens) + ", and there is room for " +
                            std::to_string(std::min(wanted, room)));
  }
  engine::Request out{.prompt = std::move(prompt), .sampling = request.sampling};
  if (out.sampling.seed) *out.sampling.seed += static_cast<uint64_t>(choice);
  out.max_tokens = wanted == 0 ? 0 : std::min(wanted, room);
  out.min_tokens = request.min_tokens;
  out.stop_ids = request.stop_token_ids;
  for (const int64_t id : model_.eos_tokens) {
    // A configuration may name one that the vocabulary lacks; the model cannot generate it.
    if (!request.ignore_eos && id >= 0 && id < model_.vocab_size) out.stop_ids.push_back(static_cast<int32_t>(id));
  }
  out.logprobs = request.logprobs;
  out.top_logprobs = request.top_logprobs;
  return out;
}

std::vector<api::LogprobEntry> Service::logprob_entries(const std::vector<engine::Token>& tokens) const {
  const auto text_of = [&](int32_t id) {
    const auto text = text_.tokenizer().decode({&id, 1}, /*skip_special=*/false);
    return text.ok() ? *text : std::string();
  };
  std::vector<api::LogprobEntry> entries;
  for (const engine::Token& token : tokens) {
    api::LogprobEntry entry{.token = text_of(token.id), .logprob = token.logprob};
    for (const engine::Candidate& candidate : token.top)
      entry.top.emplace_back(text_of(candidate.id), candidate.logprob);
    entries.push_back(std::move(entry));
  }
  return entries;
}

Result<Service::Part> Service::start(int64_t index, engine::Request request,
                                     const std::vector<std::string>& stop) const {
  std::vector<int32_t> prompt = request.prompt;
  auto submitted = LATHE_TRY(engine_.submit(std::move(request)));
  return Part{.prompt = std::move(prompt),
              .stream = std::make_shared<engine::TextStream>(std::move(submitted), text_.tokenizer(), stop),
              .choice = {.index = index}};
}

Status Service::advance(Part& part) const {
  auto delta = LATHE_TRY(part.stream->next());
  if (!delta) {
    part.complete = true;
    part.choice.finish_reason = part.stream->finish_reason();
    return {};
  }
  part.choice.text += delta->text;
  std::move(delta->tokens.begin(), delta->tokens.end(), std::back_inserter(part.tokens));
  return {};
}

Status Service::prepend_prompt(const Part& part, api::Choice& choice) const {
  choice.text = LATHE_TRY(text_.tokenizer().decode(part.prompt, /*skip_special=*/false)) + choice.text;
  if (!choice.logprobs) return {};
  auto entries = logprob_entries(part.stream->generation().prompt_logprobs());
  entries.insert(entries.end(), choice.logprobs->begin(), choice.logprobs->end());
  choice.logprobs = std::move(entries);
  choice.logprobs_without_value = 1;
  return {};
}

// The first token of each part comes before the status line, so that what goes wrong by then is answered by its own
// status. ~TextStream cancels what a client no longer waits for.
Result<http::Response> Service::whole(std::vector<Part> parts,
                                      std::function<Result<std::string>(std::vector<Part>& parts)> body) const {
  bool complete = true;
  for (Part& part : parts) {
    LATHE_TRY(advance(part));
    complete &= part.complete;
  }
  if (complete) {
    std::string json = LATHE_TRY(body(parts));
    return http::Response{.body = std::move(json)};
  }
  // Shared, because a std::function must be copyable.
  const auto shared = std::make_shared<std::vector<Part>>(std::move(parts));
  return http::Response{.deferred = [=, this](const http::Connected& connected) -> Result<std::string> {
    for (Part& part : *shared) {
      while (!part.complete) {
        if (!connected()) return Error{Code::kCancelled, "the client left"};
        LATHE_TRY(advance(part));
      }
    }
    return body(*shared);
  }};
}

void Service::keep(const api::ResponseHead& head, const std::string& conversation, const std::string& answer) const {
  store_.keep_completion({.id = head.id,
                          .version = head.version,
                          .conversation_json = conversation,
                          .answer_json = api::assistant_message(answer)},
                         options_.keep_completions);
}

api::Usage Service::usage_of(const std::vector<Part>& parts, int64_t prompt_tokens) {
  api::Usage usage{.prompt_tokens = prompt_tokens};
  for (const Part& part : parts) usage.completion_tokens += part.stream->token_count();
  return usage;
}

Result<std::vector<api::Choice>> Service::finished(std::vector<Part>& parts, bool logprobs, bool echo) const {
  std::vector<api::Choice> choices;
  for (Part& part : parts) {
    if (logprobs) part.choice.logprobs = logprob_entries(part.tokens);
    if (echo) LATHE_TRY(prepend_prompt(part, part.choice));
    choices.push_back(std::move(part.choice));
  }
  return choices;
}

Service::StreamForm Service::stream_form(const api::GenerationRequest& request, int64_t prompt_tokens) {
  return {.logprobs = request.logprobs,
          .include_usage = request.include_usage,
          .continuous_usage = request.continuous_usage,
          .prompt_tokens = prompt_tokens};
}

bool Service::send_delta(const http::SendEvent& send, const StreamForm& form, const std::vector<Part>& parts,
                         const api::Choice& delta, bool first) const {
  const bool empty = delta.text.empty() && delta.finish_reason.empty() && (!delta.logprobs || delta.logprobs->empty());
  if (empty && !first) return true;
  std::optional<api::Usage> usage;
  if (form.continuous_usage) usage = usage_of(parts, form.prompt_tokens);
  return send(form.chunk(delta, first, usage));
}

// The pieces of all choices in turn: they are generated together, a token each per step.
Status Service::send_stream(const http::SendEvent& send, const StreamForm& form, std::vector<Part>& parts) const {
  const Error gone{Code::kCancelled, "the client left"};  // ~TextStream cancels its generation
  for (const Part& part : parts) {
    if (form.opens_with_role && !send_delta(send, form, parts, {.index = part.choice.index}, /*first=*/true))
      return gone;
  }
  for (size_t open = parts.size(); open > 0;) {
    for (Part& part : parts) {
      if (part.complete) continue;
      const bool first = part.stream->token_count() == 0;
      const size_t begin = part.choice.text.size();
      LATHE_TRY(advance(part));
      api::Choice delta{.index = part.choice.index, .text = part.choice.text.substr(begin)};
      if (form.logprobs) delta.logprobs = logprob_entries(std::exchange(part.tokens, {}));
      if (first && form.echo) LATHE_TRY(prepend_prompt(part, delta));
      if (part.complete) {
        delta.finish_reason = part.choice.finish_reason;
        --open;
      }
      if (!send_delta(send, form, parts, delta, /*first=*/false)) return gone;
    }
  }
  return {};
}

http::Response Service::stream(std::vector<Part> parts, StreamForm form) const {
  const auto shared = std::make_shared<std::vector<Part>>(std::move(parts));
  return {.stream = [this, shared, form = std::move(form)](const http::SendEvent& send) {
    const Status sent = send_stream(send, form, *shared);
    if (!sent.ok()) {
      if (sent.error().code != Code::kCancelled) send(http::error_body(sent.error()).json);
      return;
    }
    if (form.include_usage && !send(form.usage_chunk(usage_of(*shared, form.prompt_tokens)))) return;
    if (form.keep) form.keep(shared->front().choice);
    send("[DONE]");
  }};
}

http::Response Service::chat(const http::Request& request) {
  const auto answer = [&]() -> Result<http::Response> {
    const api::ChatRequest chat = LATHE_TRY(api::parse_chat(request.body));
    LATHE_TRY(check_model(chat.generation.model));
    const std::vector<int32_t> prompt = LATHE_TRY(text_.prompt(chat.messages, chat.render));
    const auto prompt_count = static_cast<int64_t>(prompt.size());
    const api::ResponseHead response_head = head("chatcmpl-");
    const auto keep_first = [=, this, conversation = chat.conversation_json](const api::Choice& choice) {
      keep(response_head, conversation, choice.text);
    };
    std::vector<Part> parts;
    for (int64_t i = 0; i < chat.generation.n; ++i) {
      engine::Request generation = LATHE_TRY(engine_request(prompt, chat.generation, i, std::nullopt));
      parts.push_back(LATHE_TRY(start(i, std::move(generation), chat.generation.stop)));
    }
    if (chat.generation.stream) {
      StreamForm form = stream_form(chat.generation, prompt_count);
      form.chunk = [=](const api::Choice& delta, bool first, const std::optional<api::Usage>& usage) {
        return api::chat_chunk(response_head, delta, first, usage);
      };
      form.usage_chunk = [=](const api::Usage& usage) { return api::usage_chunk(response_head, usage, /*chat=*/true); };
      form.opens_with_role = true;
      form.keep = keep_first;
      return stream(std::move(parts), std::move(form));
    }
    const bool logprobs = chat.generation.logprobs;
    return whole(std::move(parts), [=, this](std::vector<Part>& done) -> Result<std::string> {
      const api::Usage usage = usage_of(done, prompt_count);
      const auto choices = LATHE_TRY(finished(done, logprobs, /*echo=*/false));
      keep_first(choices.front());
      return api::chat_response(response_head, choices, usage);
    });
  }();
  return answer.ok() ? *answer : respond(answer.error());
}

http::Response Service::completion(const http::Request& request) {
  const auto answer = [&]() -> Result<http::Response> {
    constexpr int64_t kDefaultTokens = 16;  // OpenAI's
    const api::CompletionRequest completion = LATHE_TRY(api::parse_completion(request.body));
    const bool echo = completion.echo, logprobs = completion.generation.logprobs;
    LATHE_TRY(check_model(completion.generation.model));
    const api::ResponseHead response_head = head("cmpl-");
    std::vector<Part> parts;
    int64_t prompt_count = 0;
    for (const api::Prompt& prompt : completion.prompts) {
      const std::vector<int32_t> ids = LATHE_TRY(prompt_tokens(text_, prompt));
      prompt_count += static_cast<int64_t>(ids.size());
      for (int64_t i = 0; i < completion.generation.n; ++i) {
        engine::Request generation = LATHE_TRY(engine_request(ids, completion.generation, i, kDefaultTokens));
        generation.prompt_logprobs = echo && logprobs;
        parts.push_back(LATHE_TRY(start(std::ssize(parts), std::move(generation), completion.generation.stop)));
      }
    }
    if (completion.generation.stream) {
      StreamForm form = stream_form(completion.generation, prompt_count);
      form.chunk = [=](const api::Choice& delta, bool, const std::optional<api::Usage>& usage) {
        return api::completion_chunk(response_head, delta, usage);
      };
      form.usage_chunk = [=](const api::Usage& usage) {
        return api::usage_chunk(response_head, usage, /*chat=*/false);
      };
      form.echo = echo;
      return stream(std::move(parts), std::move(form));
    }
    return whole(std::move(parts), [=, this](std::vector<Part>& done) -> Result<std::string> {
      const api::Usage usage = usage_of(done, prompt_count);
      const auto choices = LATHE_TRY(finished(done, logprobs, echo));
      return api::completion_response(response_head, choices, usage);
    });
  }();
  return answer.ok() ? *answer : respond(answer.error());
}

}  // namespace lathe::daemon
