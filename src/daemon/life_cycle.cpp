#include "daemon/life_cycle.h"

#include <algorithm>
#include <filesystem>
#include <thread>

#include "base/log.h"
#include "base/thread_border.h"
#include "daemon/announcement.h"
#include "history/sync.h"
#include "http/access.h"

namespace lathe::daemon {
namespace {

teach::TeacherOptions teacher_options(const std::string& directory, const config::Settings& settings) {
  teach::TeacherOptions options{
      .directory = directory,
      .history = settings.history == "interval" ? teach::HistoryMode::kInterval : teach::HistoryMode::kLesson,
      .max_queued = settings.max_learning,
      .sync_seconds = settings.sync_seconds,
      .materialize = settings.materialize,
      .lesson_bytes = settings.lesson_memory << 20};
  options.optimizer.train_embeddings = settings.train_embeddings;
  const auto method = optim::parse_method(settings.optimizer);
  if (method.ok()) options.optimizer.method = *method;
  return options;
}

http::Options server_options(const config::Settings& settings) {
  return {.host = settings.host,
          .port = settings.port,
          .api_key = settings.api_key,
          .allowed_hosts = settings.allowed_hosts,
          .allowed_origins = settings.allowed_origins,
          .threads = settings.http_threads,
          .max_body_bytes = settings.max_body_bytes};
}

LearningRoutes::Options learning_options(const LifeCycle::Parts& parts, const config::Settings& settings) {
  const model::ModelConfig& model = parts.loaded.model->config();
  return {.directory = parts.directory,
          .learning_rate = settings.learning_rate,
          .steps = settings.steps,
          .until_loss = settings.until_loss,
          .vocab_size = model.vocab_size,
          .max_context = context_limit(settings.max_context, model),
          .grade = parts.grade};
}

}  // namespace

LifeCycle::LifeCycle(const Parts& parts, const config::Settings& settings)
    : env_(parts.env),
      directory_(parts.directory),
      settings_(settings),
      model_name_(model_name(settings.served_name, parts.directory)),
      logging_(events_.subscribe(teach::log_event)),
      teacher_(parts.loaded, parts.holder, parts.store, parts.env, events_, teacher_options(parts.directory, settings),
               parts.on_disk),
      learning_(parts.text, teacher_, parts.store, parts.env, learning_options(parts, settings)),
      server_(server_options(settings)) {
  learning_.add_routes(server_);
}

Result<std::unique_ptr<LifeCycle>> LifeCycle::create(const Parts& parts, const config::Settings& settings) {
  std::unique_ptr<LifeCycle> cycle(new LifeCycle(parts, settings));
  // Weights that are adopted hold what a process that was killed had taught: its lessons are not lost.
  if (parts.adopt) {
    LATHE_TRY(cycle->teacher_.adopt());
  } else {
    LATHE_TRY(cycle->teacher_.settle());
  }
  cycle->learning_.relearn(cycle->learning_.to_relearn());
  cycle->relearning_ = cycle->events_.subscribe([&learning = cycle->learning_](const teach::Event& event) {
    if (const auto* lost = std::get_if<teach::Lost>(&event)) learning.relearn(lost->what.jobs);
  });
  return cycle;
}

api::Health LifeCycle::health() const {
  const teach::Jobs::Counts counts = teacher_.counts();
  const std::chrono::duration<double> uptime = std::chrono::steady_clock::now() - started_;
  return {.model = model_name_,
          .version = teacher_.version(),
          .synced_version = teacher_.durable_version(),
          .torn = teacher_.torn(),
          .learning = counts.queued + counts.running,
          .lost = learning_.still_lost(),
          .uptime_seconds = uptime.count()};
}

Status LifeCycle::run(const Signals& signals, const std::function<void(int port)>& ready,
                      const std::vector<Thread>& others, const std::function<void()>& ending) {
  Status last_sync;
  {
    std::jthread teaching([&](std::stop_token stop) { last_sync = teacher_.run(stop); });
    std::vector<std::jthread> running;
    for (const Thread& work : others)
      running.emplace_back([&work](std::stop_token stop) { within_border("a thread", [&] { work(stop); }); });
    LATHE_TRY(server_.start());  // leaving here stops and joins the threads
    const Announcement announcement(env_, directory_, settings_.host, server_.port());
    ready(server_.port());
    signals.wait();
    signals.release();
    log::info("stopping: finishing the current step, then syncing");
    teaching.request_stop();
    for (std::jthread& thread : running) thread.request_stop();
    if (ending) ending();
    server_.stop();
  }
  return last_sync;
}

Status check_access(const config::Settings& settings) {
  LATHE_TRY(http::Access::create({.host = settings.host,
                                  .api_key = settings.api_key,
                                  .allowed_hosts = settings.allowed_hosts,
                                  .allowed_origins = settings.allowed_origins}));
  return {};
}

Result<int64_t> recovered_version(io::Env& env, const std::string& directory) {
  const auto lock = LATHE_TRY(delta::lock_history(env, directory));
  LATHE_TRY(history::recover(env, directory));
  return history::read_version(env, directory);
}

std::string model_name(const std::string& served_name, const std::string& directory) {
  if (!served_name.empty()) return served_name;
  auto path = std::filesystem::path(directory).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  return path.filename() == "." ? std::filesystem::absolute(path).lexically_normal().parent_path().filename().string()
                                : path.filename().string();
}

int64_t context_limit(int64_t max_context, const model::ModelConfig& model) {
  return max_context > 0 ? std::min(max_context, model.max_positions) : model.max_positions;
}

}  // namespace lathe::daemon
