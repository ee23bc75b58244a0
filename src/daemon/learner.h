// Learner: the teaching thread. Takes corrections one at a time, commits them into the live weights, makes them
// durable.
//
// Threads: run() on exactly one thread, which is the only one that writes weights, optimizer state and the model
// directory; everything else from any thread. Blocking calls (sync, roll_back, wait) must not be made on run()'s
// thread.
// Durability: a finished job is in the live weights; it is on disk after the next sync (on demand, every sync_seconds,
// and at shutdown).
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "api/responses.h"
#include "base/result.h"
#include "config/settings.h"
#include "daemon/weight_holder.h"
#include "data/example.h"
#include "history/sync.h"
#include "io/env.h"
#include "model/model.h"
#include "store/store.h"
#include "train/trainer.h"
#include "weights/gate.h"

namespace lathe::daemon {

// A tokenised learn request.
struct LearnTask {
  std::string job_id;
  std::vector<data::Example> examples;
  train::StepOptions options;
  int64_t steps = 1;
  double until_loss = 0;
  bool report_tensors = false;  // of the last step
};

class Learner {
 public:
  // All references outlive the learner. `on_disk` is the version the directory holds and the weights were loaded from.
  // `holder`: whoever serves the weights, if not this process.
  Learner(model::LoadedModel& loaded, weights::Gate& gate, store::Store& store, io::Env& env, std::string directory,
          const config::Settings& settings, int64_t on_disk, WeightHolder* holder = nullptr);

  // The live weights are not the directory's: they become a version of their own. Before run().
  void adopt();

  // Queues a job and stores it. kExhausted when the queue is full. The future holds the job once it is finished.
  Result<std::future<store::Job>> submit(LearnTask task, const std::string& request_json);

  // Make the live weights durable; go back to the weights of a version on disk, the live weights too (nothing: of the
  // version before). Both wait their turn.
  Result<api::SyncResult> sync();
  Result<api::SyncResult> roll_back(std::optional<int64_t> target);

  int64_t version() const { return version_.load(); }
  int64_t synced_version() const { return synced_version_.load(); }
  int64_t queued() const;

  // Works until `stop`; then finishes the step at hand, fails the jobs not done, syncs what changed, and returns the
  // result of that last sync.
  Status run(std::stop_token stop);

 private:
  using Work = std::function<void()>;  // returns when done; never throws

  Status enqueue(Work work, bool bounded);
  store::Job learn(const LearnTask& task, std::stop_token stop);
  Result<api::LearnResult> teach(const LearnTask& task, std::stop_token stop);
  // Commits as the next version, the holder told before and behind. After an error the live weights are as before, or
  // as on disk.
  Result<train::StepReport> commit(train::Trainer& trainer, train::StepProposal proposal);
  // A change between the holder's begin and end went wrong; `whole`: the weights hold all of it.
  void take_back(bool whole);
  Result<api::SyncResult> sync_now();
  Result<api::SyncResult> roll_back_now(std::optional<int64_t> target);
  // Every sync_seconds, between two steps of a long job as well. A failure is logged, and the next turn tries again.
  void sync_if_due();
  template <class T>
  Result<T> wait_for(std::function<Result<T>()> work);

  model::LoadedModel& loaded_;
  weights::Gate& gate_;
  store::Store& store_;
  io::Env& env_;
  const std::string directory_;
  const config::Settings& settings_;
  WeightHolder* const holder_;
  optim::OptimizerConfig optimizer_;

  mutable std::mutex mutex_;  // guards queue_, stopped_
  std::condition_variable_any arrived_;
  std::deque<Work> queue_;
  bool stopped_ = false;

  std::stop_token stop_;  // of run(); teaching thread only
  std::chrono::steady_clock::time_point last_sync_ = std::chrono::steady_clock::now();
  int64_t unsynced_jobs_ = 0, unsynced_steps_ = 0;  // teaching thread only
  int64_t last_number_ = 0;                         // highest version number ever given; teaching thread only
  bool torn_ = false;                               // the live weights are of no version; teaching thread only
  std::atomic<int64_t> version_{0};
  std::atomic<int64_t> synced_version_{0};
};

}  // namespace lathe::daemon
