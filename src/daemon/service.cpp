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
  server.route("GET", "/healthz", [this](const Request&) { return http::Response{.body = health()}; });
  server.route("GET", "/v1/models", [this, created](const Request&) {
    return http::Response{.body = api::model_list(options_.model_name, created, options_.max_context)};
  });
  server.route("GET", "/v1/models/*", [this, created](const Request& request) {
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

engine::Request Service::engine_request(std::vector<int32_t> prompt, const api::GenerationRequest& request,
                                        int64_t default_max_tokens) const {
  engine::Request out{.prompt = std::move(prompt), .sampling = request.sampling};
  out.max_tokens = request.max_tokens.value_or(default_max_tokens);
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

Result<Service::Part> Service::start(const std::vector<int32_t>& prompt, engine::Request request,
                                     const std::vector<std::string>& stop) const {
  auto submitted = LATHE_TRY(engine_.submit(std::move(request)));
  return Part{.prompt = prompt,
              .stream = std::make_shared<engine::TextStream>(std::move(submitted), text_.tokenizer(), stop)};
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

Status Service::prepend_prompt(Part& part) const {
  api::Choice& choice = part.choice;
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

http::Response Service::stream(std::shared_ptr<engine::TextStream> stream, const api::ResponseHead& head,
                               const api::GenerationRequest& request, int64_t prompt_tokens, StreamForm form) const {
  return {.stream = [=, this, stream = std::move(stream), form = std::move(form), logprobs = request.logprobs,
                     include_usage = request.include_usage](const http::SendEvent& send) {
    if (form.opens_with_role && !send(form.chunk({}, /*first=*/true))) return;
    std::string answer;
    for (;;) {
      auto delta = stream->next();
      if (!delta.ok()) {
        send(http::error_body(delta.error()).json);
        return;
      }
      if (!*delta) break;
      api::Choice choice{.text = (*delta)->text};
      answer += choice.text;
      if (logprobs) choice.logprobs = logprob_entries((*delta)->tokens);
      if (choice.text.empty() && !logprobs) continue;
      if (!send(form.chunk(choice, false))) return;  // the client is gone: ~TextStream cancels the generation
    }
    if (!send(form.chunk({.finish_reason = stream->finish_reason()}, false))) return;
    if (include_usage && !send(api::usage_chunk(head, {prompt_tokens, stream->token_count()}, form.chat))) return;
    if (form.keep) form.keep(answer);
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
    std::vector<Part> parts;
    for (int64_t i = 0; i < chat.generation.n; ++i) {
      engine::Request generation =
          engine_request(prompt, chat.generation, std::max<int64_t>(1, options_.max_context - prompt_count));
      if (generation.sampling.seed) *generation.sampling.seed += static_cast<uint64_t>(i);
      parts.push_back(LATHE_TRY(start(prompt, std::move(generation), chat.generation.stop)));
    }
    if (chat.generation.stream) {
      return stream(
          parts[0].stream, response_head, chat.generation, prompt_count,
          {.chunk = [=](const api::Choice& c, bool first) { return api::chat_chunk(response_head, c, first); },
           .opens_with_role = true,
           .chat = true,
           .keep = [=, this, conversation = chat.conversation_json](
                       const std::string& text) { keep(response_head, conversation, text); }});
    }
    const auto body = [=, this, logprobs = chat.generation.logprobs,
                       conversation = chat.conversation_json](std::vector<Part>& done) -> Result<std::string> {
      std::vector<api::Choice> choices;
      api::Usage usage{.prompt_tokens = prompt_count};
      for (Part& part : done) {
        usage.completion_tokens += part.stream->token_count();
        if (logprobs) part.choice.logprobs = logprob_entries(part.tokens);
        choices.push_back(std::move(part.choice));
      }
      keep(response_head, conversation, choices.front().text);
      return api::chat_response(response_head, choices, usage);
    };
    return whole(std::move(parts), body);
  }();
  return answer.ok() ? *answer : respond(answer.error());
}

http::Response Service::completion(const http::Request& request) {
  const auto answer = [&]() -> Result<http::Response> {
    constexpr int64_t kDefaultTokens = 16;  // OpenAI's
    const api::CompletionRequest completion = LATHE_TRY(api::parse_completion(request.body));
    LATHE_TRY(check_model(completion.generation.model));
    const api::ResponseHead response_head = head("cmpl-");
    std::vector<Part> parts;
    int64_t prompt_count = 0;
    for (const api::Prompt& prompt : completion.prompts) {
      const std::vector<int32_t> ids = LATHE_TRY(prompt_tokens(text_, prompt));
      prompt_count += static_cast<int64_t>(ids.size());
      for (int64_t i = 0; i < completion.generation.n; ++i) {
        engine::Request generation = engine_request(ids, completion.generation, kDefaultTokens);
        generation.prompt_logprobs = completion.echo && completion.generation.logprobs;
        if (generation.sampling.seed) *generation.sampling.seed += static_cast<uint64_t>(i);
        parts.push_back(LATHE_TRY(start(ids, std::move(generation), completion.generation.stop)));
      }
    }
    if (completion.generation.stream) {
      return stream(parts[0].stream, response_head, completion.generation, prompt_count,
                    {.chunk = [=](const api::Choice& c, bool) { return api::completion_chunk(response_head, c); }});
    }
    const auto body = [=, this, echo = completion.echo,
                       logprobs = completion.generation.logprobs](std::vector<Part>& done) -> Result<std::string> {
      std::vector<api::Choice> choices;
      api::Usage usage{.prompt_tokens = prompt_count};
      for (Part& part : done) {
        usage.completion_tokens += part.stream->token_count();
        if (logprobs) part.choice.logprobs = logprob_entries(part.tokens);
        if (echo) LATHE_TRY(prepend_prompt(part));
        choices.push_back(std::move(part.choice));
      }
      return api::completion_response(response_head, choices, usage);
    };
    return whole(std::move(parts), body);
  }();
  return answer.ok() ? *answer : respond(answer.error());
}

}  // namespace lathe::daemon
