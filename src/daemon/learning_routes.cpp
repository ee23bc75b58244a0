#include "daemon/learning_routes.h"

#include "base/log.h"
#include "daemon/prompt_tokens.h"
#include "daemon/random_id.h"
#include "http/error_body.h"
#include "http/respond.h"
#include "teach/catalog.h"

namespace lathe::daemon {
namespace {

using http::respond;

Result<std::string> moved_body(const Result<teach::Moved>& result, bool redo = false) {
  if (!result.ok()) return result.error();
  const teach::Synced& v = result->version;
  return api::sync_body({.version = v.version,
                         .restores = result->restores,
                         .redo = redo,
                         .delta_bytes = v.delta_bytes,
                         .bytes_written = v.bytes_written,
                         .shards_written = v.shards_written,
                         .durable_seconds = v.durable_seconds,
                         .seconds = v.seconds});
}

// The page after the last of `all` that fits, and whether there is one.
template <class T>
bool cut(std::vector<T>& all, int64_t limit) {
  const bool more = std::ssize(all) > limit;
  if (more) all.resize(static_cast<size_t>(limit));
  return more;
}

}  // namespace

void LearningRoutes::add_routes(http::Server& server) {
  using http::Request;
  server.set_header("X-Lathe-Version", [this] { return std::to_string(teacher_.version()); });
  server.route("POST", "/v1/learn", [this](const Request& request) { return learn(request); });
  server.route("GET", "/v1/learn", [this](const Request& request) { return respond(jobs(request)); });
  server.route("GET", "/v1/learn/*", [this](const Request& request) { return respond(job(request.argument)); });
  server.route("DELETE", "/v1/learn/*", [this](const Request& request) { return respond(cancel(request.argument)); });
  server.route("GET", "/v1/chat/completions", [this](const Request& request) { return respond(completions(request)); });
  server.route("GET", "/v1/chat/completions/*",
               [this](const Request& request) { return respond(completion(request.argument)); });
  server.route("GET", "/v1/versions", [this](const Request& request) { return respond(versions(request)); });
  server.route("POST", "/v1/sync", [this](const Request&) { return respond(moved_body(teacher_.sync())); });
  server.route("POST", "/v1/rollback", [this](const Request& request) {
    const auto target = api::parse_rollback(request.body);
    return target.ok() ? respond(moved_body(teacher_.roll_back(*target))) : respond(target.error());
  });
  server.route("POST", "/v1/redo",
               [this](const Request&) { return respond(moved_body(teacher_.redo(), /*redo=*/true)); });
}

void LearningRoutes::add_text_routes(http::Server& server) {
  using http::Request;
  server.route("POST", "/tokenize", [this](const Request& request) { return respond(tokenize(request.body)); });
  server.route("POST", "/detokenize", [this](const Request& request) { return respond(detokenize(request.body)); });
}

Result<api::LearnRequest> LearningRoutes::parse(const std::string& body) const {
  return api::parse_learn(body, [this](const std::string& completion) -> Result<std::string> {
    store::Completion kept = LATHE_TRY(store_.completion(completion));
    return std::move(kept.conversation_json);
  });
}

Result<teach::Lesson> LearningRoutes::lesson_of(const api::LearnRequest& request, const std::string& id) const {
  teach::Lesson lesson{.id = id,
                       .steps = request.steps.value_or(options_.steps),
                       .until_loss = request.until_loss.value_or(options_.until_loss),
                       .report_tensors = request.report_tensors,
                       .durable = request.durable};
  lesson.options.learning_rate = request.learning_rate.value_or(options_.learning_rate);
  lesson.options.context = request.context;
  for (const api::LearnExample& example : request.examples) {
    const auto graded = LATHE_TRY(options_.grade ? options_.grade(example) : api::graded_tokens(example, text_));
    lesson.examples.push_back(LATHE_TRY(api::to_example(graded, options_.vocab_size, options_.max_context)));
  }
  return lesson;
}

http::Response LearningRoutes::learn(const http::Request& request) {
  const auto answer = [&]() -> Result<http::Response> {
    const api::LearnRequest learn = LATHE_TRY(parse(request.body));
    const std::string id = random_id("learn-");
    teach::Lesson lesson = LATHE_TRY(lesson_of(learn, id));
    std::future<teach::Outcome> done = LATHE_TRY(teacher_.submit(std::move(lesson), request.body));
    for (const api::LearnExample& example : learn.examples) {
      // The lesson runs all the same.
      const auto kept = store_.add_example(example.json, id);
      if (!kept.ok()) log::warning("an example of " + id + " was not kept: " + kept.error().message);
      if (example.completion.empty()) continue;
      const Status marked = store_.mark_corrected(example.completion, id);
      if (!marked.ok()) log::warning("the correction of " + example.completion + ": " + marked.error().message);
    }
    if (learn.wait) return ended(id, done.get());
    const store::Job queued = LATHE_TRY(store_.job(id));
    return http::Response{.status = 202, .body = api::job_body(queued, teacher_.durable_version())};
  }();
  return answer.ok() ? *answer : respond(answer.error());
}

http::Response LearningRoutes::ended(const std::string& id, const teach::Outcome& outcome) const {
  http::Response response = respond(job(id));
  if (response.status == 200 && outcome.error) response.status = http::error_body(*outcome.error).status;
  return response;
}

Result<std::string> LearningRoutes::relearn_one(const std::string& id) {
  const store::Job lost = LATHE_TRY(store_.job(id));
  const api::LearnRequest request = LATHE_TRY(parse(lost.request_json));
  teach::Lesson lesson = LATHE_TRY(lesson_of(request, random_id("learn-")));
  lesson.relearns = id;
  const std::string again = lesson.id;
  const auto queued = teacher_.submit(std::move(lesson), lost.request_json);
  if (!queued.ok()) return queued.error();
  return again;
}

void LearningRoutes::relearn(const std::vector<std::string>& jobs) {
  for (const std::string& id : jobs) {
    const auto again = relearn_one(id);
    if (again.ok()) {
      log::info(id + " was lost and is learned again as " + *again);
    } else {
      log::error(id + " was lost and cannot be learned again: " + again.error().message);
    }
  }
}

std::vector<std::string> LearningRoutes::lost(bool but_failed_again) const {
  using teach::State;
  const auto is = [](const store::Job& job, State state) { return job.state == teach::state_name(state); };
  std::vector<std::string> ids;
  const auto all = store_.jobs_in_state(std::string(teach::state_name(State::kLost)));
  if (!all.ok()) return ids;
  for (const store::Job& job : *all) {
    if (!job.relearned_by.empty()) {
      const auto again = store_.job(job.relearned_by);
      const bool failed =
          again.ok() && (is(*again, State::kFailed) || is(*again, State::kCancelled) || is(*again, State::kRefused));
      if (!(again.ok() && is(*again, State::kInterrupted)) && (but_failed_again || !failed)) continue;
    }
    ids.push_back(job.id);
  }
  return ids;
}

Result<std::string> LearningRoutes::cancel(const std::string& id) {
  LATHE_TRY(teacher_.cancel(id));
  return job(id);
}

Result<std::string> LearningRoutes::jobs(const http::Request& request) const {
  const int64_t limit = LATHE_TRY(api::parse_limit(request.query("limit")));
  std::vector<store::Job> found = LATHE_TRY(store_.jobs(limit + 1, request.query("after")));
  const bool more = cut(found, limit);
  return api::job_list(found, more, teacher_.durable_version());
}

Result<std::string> LearningRoutes::job(const std::string& id) const {
  const store::Job found = LATHE_TRY(store_.job(id));
  const std::vector<store::TensorChange> tensors = LATHE_TRY(store_.tensors(id));
  return api::job_body(found, teacher_.durable_version(), tensors);
}

Result<std::string> LearningRoutes::versions(const http::Request& request) const {
  const int64_t limit = LATHE_TRY(api::parse_limit(request.query("limit")));
  const std::optional<int64_t> before = LATHE_TRY(api::parse_before(request.query("before")));
  const int64_t live = teacher_.version();
  teach::CatalogPage page = LATHE_TRY(teach::list_versions(env_, options_.directory, store_, live, limit, before));
  api::VersionList list{.live = live, .on_disk = teacher_.durable_version(), .more = page.more};
  for (teach::CatalogEntry& e : page.entries) {
    list.entries.push_back({.version = e.version,
                            .first = e.first,
                            .kind = std::move(e.kind),
                            .jobs = std::move(e.jobs),
                            .restores = e.restores,
                            .note = std::move(e.note),
                            .steps = e.steps,
                            .created_at = e.created_at,
                            .loss = e.loss,
                            .learning_rate = e.learning_rate,
                            .changed_fraction = e.changed_fraction,
                            .durable = e.durable});
  }
  list.lost = LATHE_TRY(store_.lost_versions(100));
  return api::version_list(list);
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
    return api::token_list(ids, options_.max_context);
  }
  const auto ids = LATHE_TRY(prompt_tokens(text_, std::get<std::string>(request.input)));
  return api::token_list(ids, options_.max_context);
}

Result<std::string> LearningRoutes::detokenize(const std::string& body) const {
  const api::DetokenizeRequest request = LATHE_TRY(api::parse_detokenize(body));
  const std::string text = LATHE_TRY(text_.tokenizer().decode(request.tokens, /*skip_special=*/false));
  return api::prompt_text(text);
}

}  // namespace lathe::daemon
