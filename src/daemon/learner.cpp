#include "daemon/learner.h"

#include <algorithm>
#include <chrono>

#include "base/heap.h"
#include "base/log.h"
#include "delta/model_dir.h"
#include "gpu/device.h"
#include "http/error_body.h"
#include "weights/live_tensors.h"

namespace lathe::daemon {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

std::vector<api::TensorChange> changes_of(const optim::CommitReport& commit) {
  std::vector<api::TensorChange> changes;
  for (const optim::TensorReport& tensor : commit.tensors) {
    changes.push_back({.name = std::string(tensor.name),
                       .gradient_norm = tensor.gradient_norm,
                       .update_norm = tensor.update_norm,
                       .limiter = tensor.limiter,
                       .changed_fraction = tensor.stats.changed_fraction(),
                       .realised = tensor.stats.realised_share()});
  }
  return changes;
}

const Error kStopping{Code::kUnavailable, "the server is shutting down"};

}  // namespace

Learner::Learner(model::LoadedModel& loaded, weights::Gate& gate, store::Store& store, io::Env& env,
                 std::string directory, const config::Settings& settings, int64_t on_disk, WeightHolder* holder)
    : loaded_(loaded),
      gate_(gate),
      store_(store),
      env_(env),
      directory_(std::move(directory)),
      settings_(settings),
      holder_(holder) {
  optimizer_.train_embeddings = settings.train_embeddings;
  const auto method = optim::parse_method(settings.optimizer);
  if (method.ok()) optimizer_.method = *method;
  version_ = synced_version_ = on_disk;
  // Versions that were committed and never synced are gone with the process that made them; their numbers stay used.
  const auto latest = store.latest_version();
  last_number_ = std::max(on_disk, latest.ok() ? *latest : 0);
}

void Learner::adopt() {
  version_ = ++last_number_;
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
    LATHE_TRY(store_.set_job(id, "failed", http::error_body(queued.error()).json));
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

Result<api::SyncResult> Learner::roll_back(std::optional<int64_t> target) {
  return wait_for<api::SyncResult>([this, target] { return roll_back_now(target); });
}

void Learner::sync_if_due() {
  if (settings_.sync_seconds == 0 || version_ == synced_version_ ||
      seconds_since(last_sync_) < static_cast<double>(settings_.sync_seconds)) {
    return;
  }
  const auto synced = sync_now();
  if (!synced.ok()) log::error("sync failed, will be tried again: " + synced.error().message);
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
    if (work) {
      work();
      give_back_heap();
    }
    sync_if_due();
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
    record("failed", http::error_body(result.error()).json);
    log::warning("job " + task.job_id + " failed: " + result.error().message);
  }
  const auto job = store_.job(task.job_id);
  if (job.ok()) return *job;
  return {.id = task.job_id, .state = "failed", .result_json = http::error_body(job.error()).json};
}

Result<train::StepReport> Learner::commit(train::Trainer& trainer, train::StepProposal proposal) {
  const auto begin = Clock::now();
  if (holder_) LATHE_TRY(holder_->begin());
  auto report = trainer.commit(std::move(proposal));
  const int64_t version = last_number_ + 1;
  Status done = report.ok() ? Status() : Status(report.error());
  if (done.ok() && holder_) {
    done = holder_->end(version);
    report->pause_seconds = seconds_since(begin);
  }
  if (!done.ok()) {
    if (holder_) take_back(/*whole=*/report.ok());
    return done.error();
  }
  version_ = last_number_ = version;
  return report;
}

void Learner::take_back(bool whole) {
  const Status abandoned = holder_->abandon();
  if (abandoned.ok()) {
    version_ = synced_version_.load();
    return;
  }
  log::error("the weights' server could not be told to take a change back: " + abandoned.error().message);
  if (whole) {
    version_ = ++last_number_;
  } else {
    torn_ = true;
  }
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
    const train::StepReport report = LATHE_TRY(commit(trainer, std::move(proposal)));
    unsynced_jobs_ += result.steps++ == 0;
    ++unsynced_steps_;
    const double fraction = report.commit.total.changed_fraction();
    result.changed_fraction += (fraction - result.changed_fraction) / static_cast<double>(result.steps);
    result.realised = report.commit.total.realised_share();
    result.pause_ms = std::max(result.pause_ms, report.pause_seconds * 1e3);
    if (task.report_tensors) result.tensors = changes_of(report.commit);
    LATHE_TRY(store_.add_version({.version = version_,
                                  .job_id = task.job_id,
                                  .loss = loss,
                                  .learning_rate = task.options.learning_rate,
                                  .changed_fraction = fraction}));
    sync_if_due();
  }
  result.loss_after = LATHE_TRY(trainer.evaluate(task.examples, task.options)).loss;
  result.version = version_;
  result.seconds = seconds_since(begin);
  return result;
}

namespace {

api::SyncResult result_of(const history::SyncReport& report) {
  return {.version = report.version,
          .restores = report.restores,
          .delta_bytes = report.delta_bytes,
          .bytes_written = report.bytes_written,
          .shards_written = report.shards_rewritten + report.shards_in_place,
          .durable_seconds = report.durable_seconds,
          .seconds = report.seconds};
}

std::string megabytes(uint64_t bytes) {
  return std::to_string(bytes / 1'000'000) + " MB";
}

}  // namespace

// This thread is the only writer, so the weights are still while their tiles are hashed and the changed ones read, and
// serving goes on. A correction has an optimizer of its own, which ends with it: no state of it belongs to the version.
Result<api::SyncResult> Learner::sync_now() {
  last_sync_ = Clock::now();
  if (torn_)
    return internal(
        "a change of the weights ended half-way: there is no version to sync; start again from the directory");
  if (version_ == synced_version_) return api::SyncResult{.version = version_};
  history::SyncOptions options{.record = {.kind = "learn",
                                          .note = std::to_string(unsynced_jobs_) + " corrections, " +
                                                  std::to_string(unsynced_steps_) + " steps"},
                               .materialize = settings_.materialize,
                               .even_if_equal = true};
  const history::SyncReport report =
      LATHE_TRY(history::sync(env_, directory_, weights::LiveTensors(*loaded_.store), version_, options));
  synced_version_ = version_.load();
  if (holder_) {
    const Status told = holder_->durable();
    if (!told.ok()) log::warning("the weights' server was not told of the sync: " + told.error().message);
  }
  unsynced_jobs_ = unsynced_steps_ = 0;
  LATHE_TRY(store_.mark_synced(version_));
  log::info("synced version " + std::to_string(report.version) + ": " + megabytes(report.delta_bytes) + " durable in " +
            std::to_string(report.durable_seconds) + " s, " + megabytes(report.bytes_written) + " of shards in " +
            std::to_string(report.seconds) + " s");
  return result_of(report);
}

Result<api::SyncResult> Learner::roll_back_now(std::optional<int64_t> target) {
  // What is only in memory becomes durable first, so that rolling back can itself be undone.
  LATHE_TRY(sync_now());
  const auto begin = Clock::now();
  const history::SyncReport report = LATHE_TRY(history::rollback(env_, directory_, target, last_number_ + 1));
  const delta::ModelDir dir = LATHE_TRY(delta::ModelDir::open(env_, directory_));
  last_number_ = synced_version_ = report.version;
  // Nothing is changed by what cannot be read; version_ differs from the directory's, so the next sync goes on from it.
  LATHE_TRY(loaded_.store->check_reload(dir).at("the directory was rolled back, the served weights were not"));
  if (holder_) LATHE_TRY(holder_->begin());
  Status reloaded;
  {
    const weights::Gate::Exclusive alone(gate_);
    reloaded = loaded_.store->reload(dir);
    if (reloaded.ok()) version_ = report.version;
  }
  if (reloaded.ok() && holder_) reloaded = holder_->end(report.version);
  if (!reloaded.ok()) {
    if (holder_) {
      take_back(/*whole=*/false);
    } else {
      torn_ = true;
    }
    return reloaded.error();
  }
  if (holder_) LATHE_TRY(holder_->durable());
  LATHE_TRY(store_.add_version({.version = version_, .synced = true}));
  api::SyncResult result = result_of(report);
  result.seconds = seconds_since(begin);
  log::info("rolled back to the weights of version " + std::to_string(report.restores.value_or(0)) + " as version " +
            std::to_string(report.version));
  return result;
}

}  // namespace lathe::daemon
