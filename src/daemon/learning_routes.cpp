#include "daemon/learning_routes.h"

#include "base/log.h"
#include "daemon/routes.h"

namespace lathe::daemon {

void LearningRoutes::add_routes(http::Server& server) {
  using http::Request;
  server.set_header("X-Lathe-Version", [this] { return std::to_string(learner_.version()); });
  server.route("POST", "/v1/learn", [this](const Request& request) { return learn(request); });
  server.route("GET", "/v1/learn", [this](const Request&) {
    const auto jobs = store_.jobs(100);
    return jobs.ok() ? http::Response{.body = api::job_list(*jobs)} : respond(jobs.error());
  });
  server.route("GET", "/v1/learn/*", [this](const Request& request) { return respond(job(request.argument)); });
  server.route("GET", "/v1/chat/completions", [this](const Request& request) { return respond(completions(request)); });
  server.route("GET", "/v1/chat/completions/*",
               [this](const Request& request) { return respond(completion(request.argument)); });
  server.route("GET", "/v1/versions", [this](const Request&) {
    const auto versions = store_.versions(1000);
    if (!versions.ok()) return respond(versions.error());
    return http::Response{.body = api::version_list(*versions, learner_.version(), learner_.synced_version())};
  });
  const auto sync_response = [](const Result<api::SyncResult>& result) {
    return result.ok() ? http::Response{.body = api::sync_body(*result)} : respond(result.error());
  };
  server.route("POST", "/v1/sync", [this, sync_response](const Request&) { return sync_response(learner_.sync()); });
  server.route("POST", "/v1/rollback", [this, sync_response](const Request& request) {
    const auto target = api::parse_rollback(request.body);
    return target.ok() ? sync_response(learner_.roll_back(*target)) : respond(target.error());
  });
}

void LearningRoutes::add_text_routes(http::Server& server) {
  using http::Request;
  server.route("POST", "/tokenize", [this](const Request& request) { return respond(tokenize(request.body)); });
  server.route("POST", "/detokenize", [this](const Request& request) { return respond(detokenize(request.body)); });
}

Result<data::Example> LearningRoutes::tokenised(const api::LearnExample& example) const {
  text::GradedTokens graded =
      LATHE_TRY(grade_ ? grade_(example) : text_.graded(example.messages, example.turn_weights, example.render));
  data::Example out{.tokens = std::move(graded.ids), .weights = std::move(graded.weights)};
  LATHE_TRY(data::validate(out, model_.vocab_size, context_limit(settings_, model_)));
  return out;
}

http::Response LearningRoutes::learn(const http::Request& request) {
  const auto answer = [&]() -> Result<http::Response> {
    const auto conversation = [this](const std::string& completion) -> Result<std::string> {
      store::Completion kept = LATHE_TRY(store_.completion(completion));
      return std::move(kept.conversation_json);
    };
    const api::LearnRequest learn = LATHE_TRY(api::parse_learn(request.body, conversation));
    LearnTask task{.job_id = new_id("learn-")};
    for (const api::LearnExample& example : learn.examples) {
      task.examples.push_back(LATHE_TRY(tokenised(example)));
      LATHE_TRY(store_.add_example(example.json, task.job_id));
    }
    task.options.learning_rate = learn.learning_rate.value_or(settings_.learning_rate);
    task.options.context = learn.context;
    task.steps = learn.steps.value_or(settings_.steps);
    task.until_loss = learn.until_loss.value_or(settings_.until_loss);
    task.report_tensors = learn.report_tensors;
    const std::string id = task.job_id;
    std::future<store::Job> done = LATHE_TRY(learner_.submit(std::move(task), request.body));
    for (const api::LearnExample& example : learn.examples) {
      if (example.completion.empty()) continue;
      const Status marked = store_.mark_corrected(example.completion, id);  // the job runs all the same
      if (!marked.ok()) log::warning("the correction of " + example.completion + ": " + marked.error().message);
    }
    if (!learn.wait) {
      const store::Job queued = LATHE_TRY(store_.job(id));
      return http::Response{.status = 202, .body = api::job_body(queued)};
    }
    const store::Job finished = done.get();
    return http::Response{.status = finished.state == "succeeded" ? 200 : 500, .body = api::job_body(finished)};
  }();
  return answer.ok() ? *answer : respond(answer.error());
}

Result<std::string> LearningRoutes::job(const std::string& id) const {
  const store::Job found = LATHE_TRY(store_.job(id));
  return api::job_body(found);
}

Result<std::string> LearningRoutes::completions(const http::Request& request) const {
  const int64_t limit = LATHE_TRY(api::parse_limit(request.query("limit")));
  const auto kept = LATHE_TRY(store_.completions(limit));
  return api::completion_list(kept);
}

Result<std::string> LearningRoutes::completion(const std::string& id) const {
  const store::Completion kept = LATHE_TRY(store_.completion(id));
  return api::kept_completion(kept);
}

Result<std::string> LearningRoutes::tokenize(const std::string& body) const {
  const api::TokenizeRequest request = LATHE_TRY(api::parse_tokenize(body));
  if (const auto* chat = std::get_if<api::ChatRequest>(&request.input)) {
    const auto ids = LATHE_TRY(text_.prompt(chat->messages, chat->render));
    return api::token_list(ids, context_limit(settings_, model_));
  }
  const auto ids = LATHE_TRY(prompt_tokens(text_, std::get<std::string>(request.input)));
  return api::token_list(ids, context_limit(settings_, model_));
}

Result<std::string> LearningRoutes::detokenize(const std::string& body) const {
  const api::DetokenizeRequest request = LATHE_TRY(api::parse_detokenize(body));
  const std::string text = LATHE_TRY(text_.tokenizer().decode(request.tokens, /*skip_special=*/false));
  return api::prompt_text(text);
}

}  // namespace lathe::daemon
