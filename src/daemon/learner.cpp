#include "daemon/learner.h"

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "checkpoint/model_dir.h"
#include "gpu/device.h"

namespace lathe::daemon {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

const Error kStopping{Code::kUnavailable, "the server is shutting down"};

}  // namespace

Learner::Learner(model::LoadedModel& loaded, weights::Gate& gate, store::Store& store, io::Env& env,
                 std::string directory, const config::Settings& settings, checkpoint::DirectoryVersion on_disk)
    : loaded_(loaded), gate_(gate), store_(store), env_(env), directory_(std::move(directory)), settings_(settings) {
  optimizer_.train_embeddings = settings.train_embeddings;
  const auto method = optim::parse_method(settings.optimizer);
  if (method.ok()) optimizer_.method = *method;
  version_ = synced_version_ = on_disk.version;
  // Versions that were committed and never synced are gone with the process that made them; their numbers stay used.
  const auto latest = store.latest_version();
  last_number_ = std::max(on_disk.version, latest.ok() ? *latest : 0);
}

int64_t Learner::queued() const {
  const std::lock_guard hold(mutex_);
  return static_cast<int64_t>(queue_.size());
}

Status Learner::enqueue(Work work, bool bounded) {
  {
    const std::lock_guard hold(mutex_);
    if (stopped_) return kStopping;
    if (bounded && static_cast<int64_t>(queue_.size()) >= settings_.max_learning) {
      return Error{Code::kExhausted, std::to_string(queue_.size()) + " learning jobs are waiting; try again later"};
    }
    queue_.push_back(std::move(work));
  }
  arrived_.notify_all();
  return {};
}

Result<std::future<store::Job>> Learner::submit(LearnTask task, const std::string& request_json) {
  LATHE_TRY(store_.add_job({.id = task.job_id, .state = "queued", .request_json = request_json}));
  const std::string id = task.job_id;
  auto promise = std::make_shared<std::promise<store::Job>>();
  auto future = promise->get_future();
  const Status queued =
      enqueue([this, promise, task = std::move(task)] { promise->set_value(learn(task, stop_)); }, /*bounded=*/true);
  if (!queued.ok()) {
    LATHE_TRY(store_.set_job(id, "failed", api::error_body(queued.error()).json));
    return queued.error();
  }
  return future;
}

template <class T>
Result<T> Learner::wait_for(std::function<Result<T>()> work) {
  auto promise = std::make_shared<std::promise<Result<T>>>();
  auto future = promise->get_future();
  LATHE_TRY(enqueue([promise, work = std::move(work)] { promise->set_value(work()); }, /*bounded=*/false));
  return future.get();
}

Result<api::SyncResult> Learner::sync() {
  return wait_for<api::SyncResult>([this] { return sync_now(); });
}

Result<api::SyncResult> Learner::roll_back() {
  return wait_for<api::SyncResult>([this] { return roll_back_now(); });
}

bool Learner::sync_is_due() const {
  return settings_.sync_seconds > 0 && version_ != synced_version_ &&
         seconds_since(last_sync_) >= static_cast<double>(settings_.sync_seconds);
}

Status Learner::run(std::stop_token stop) {
  stop_ = stop;
  const gpu::OwnStream own_stream(loaded_.model->options().device());
  while (!stop.stop_requested()) {
    Work work;
    {
      std::unique_lock hold(mutex_);
      arrived_.wait_for(hold, stop, std::chrono::seconds(1), [&] { return !queue_.empty(); });
      if (!queue_.empty()) {
        work = std::move(queue_.front());
        queue_.pop_front();
      }
    }
    if (work) work();
    if (!sync_is_due()) continue;
    const auto synced = sync_now();
    if (!synced.ok()) log::error("sync failed, will be tried again: " + synced.error().message);
  }
  std::deque<Work> left;
  {
    const std::lock_guard hold(mutex_);
    stopped_ = true;
    left.swap(queue_);
  }
  for (const Work& work : left) work();  // with stop requested, jobs end at once and say so
  const auto synced = sync_now();
  return synced.ok() ? Status() : Status(synced.error());
}

store::Job Learner::learn(const LearnTask& task, std::stop_token stop) {
  const auto record = [&](const char* state, const std::string& result) {
    const Status stored = store_.set_job(task.job_id, state, result);
    if (!stored.ok()) log::error("job " + task.job_id + ": " + stored.error().message);
  };
  record("running", "");
  const Result<api::LearnResult> result = teach(task, stop);
  if (result.ok()) {
    record("succeeded", api::learn_result(*result));
    log::info("learned " + task.job_id + ": version " + std::to_string(result->version) + ", loss " +
              std::to_string(result->loss_before) + " -> " + std::to_string(result->loss_after) + " in " +
              std::to_string(result->seconds) + " s");
  } else {
    record("failed", api::error_body(result.error()).json);
    log::warning("job " + task.job_id + " failed: " + result.error().message);
  }
  const auto job = store_.job(task.job_id);
  if (job.ok()) return *job;
  return {.id = task.job_id, .state = "failed", .result_json = api::error_body(job.error()).json};
}

// Steps until the loss is low enough or the steps are used up. Every commit is a version of its own.
Result<api::LearnResult> Learner::teach(const LearnTask& task, std::stop_token stop) {
  // A fresh optimizer per correction: moments of an earlier, unrelated one would steer this one's first steps.
  train::Trainer trainer(*loaded_.model, *loaded_.store, gate_, optimizer_);
  const auto begin = Clock::now();
  api::LearnResult result{.previous_version = version_};
  for (int64_t step = 0; step < task.steps; ++step) {
    if (stop.stop_requested()) return kStopping.at("stopped after " + std::to_string(result.steps) + " steps");
    auto proposal = LATHE_TRY(trainer.propose(task.examples, task.options));
    const double loss = proposal.loss;
    if (step == 0) {
      result.loss_before = loss;
      result.graded_tokens = proposal.graded_tokens;
      result.tokens = proposal.tokens;
    }
    if (step > 0 && loss < task.until_loss) break;
    const train::StepReport report = LATHE_TRY(trainer.commit(std::move(proposal)));
    version_ = ++last_number_;
    ++result.steps;
    const auto& total = report.commit.total;
    const double fraction =
        static_cast<double>(total.changed) / static_cast<double>(std::max<int64_t>(total.elements, 1));
    result.changed_fraction += (fraction - result.changed_fraction) / static_cast<double>(result.steps);
    result.realised = total.intended_squared > 0 ? total.realised_dot / total.intended_squared : 1;
    result.pause_ms = std::max(result.pause_ms, report.pause_seconds * 1e3);
    LATHE_TRY(store_.add_version({.version = version_,
                                  .job_id = task.job_id,
                                  .loss = loss,
                                  .learning_rate = task.options.learning_rate,
                                  .changed_fraction = fraction}));
  }
  result.loss_after = LATHE_TRY(trainer.evaluate(task.examples, task.options)).loss;
  result.version = version_;
  result.seconds = seconds_since(begin);
  return result;
}

Result<api::SyncResult> Learner::sync_now() {
  const auto begin = Clock::now();
  last_sync_ = begin;
  // This thread is the only writer, so the weights are still while it copies them, and serving goes on.
  weights::PartReader reader;
  const checkpoint::LiveTensor live = [&](std::string_view name) -> std::optional<std::span<const std::byte>> {
    const weights::Part* part = loaded_.store->find_part(name);
    if (!part) return std::nullopt;
    return reader.bytes(*part);
  };
  api::SyncResult result{.version = version_};
  if (version_ == synced_version_) return result;
  const checkpoint::SyncReport report = LATHE_TRY(checkpoint::sync(env_, directory_, live, version_));
  synced_version_ = version_.load();
  LATHE_TRY(store_.mark_synced(version_));
  result.bytes_written = report.bytes_written;
  result.shards_written = report.shards_written;
  result.seconds = seconds_since(begin);
  log::info("synced version " + std::to_string(result.version) + ": " + std::to_string(result.bytes_written >> 20) +
            " MiB in " + std::to_string(result.seconds) + " s");
  return result;
}

Result<api::SyncResult> Learner::roll_back_now() {
  // What is only in memory becomes durable first, so that rolling back can itself be undone.
  LATHE_TRY(sync_now());
  const auto begin = Clock::now();
  const checkpoint::SyncReport report = LATHE_TRY(checkpoint::rollback(env_, directory_));
  const checkpoint::ModelDir dir = LATHE_TRY(checkpoint::ModelDir::open(env_, directory_));
  {
    const weights::Gate::Exclusive alone(gate_);
    LATHE_TRY(loaded_.store->reload(dir));
    version_ = synced_version_ = report.now.version;
    last_number_ = std::max(last_number_, report.now.version);
  }
  LATHE_TRY(store_.add_version({.version = version_, .synced = true}));
  return api::SyncResult{.version = version_, .shards_written = report.shards_written, .seconds = seconds_since(begin)};
}

}  // namespace lathe::daemon
