// Teacher: the teaching thread. Takes lessons one at a time, commits their steps into the live weights, and makes them
// durable.
//
// A lesson is one version on disk (HistoryMode::kLesson): it is made durable when the queue is empty after it, and in
// any case before the next lesson's first write. Its outcome does not wait for that, unless the lesson asks.
// Threads: run() on exactly one thread, which is the only one that writes weights, optimizer state and the model
// directory; everything else from any thread. Blocking calls (sync, roll_back, redo) must not be made on run()'s
// thread.
// Durability: as Outcome and Versions say; docs/durability.md.
#pragma once

#include <chrono>
#include <future>
#include <optional>
#include <stop_token>
#include <string>

#include "base/result.h"
#include "io/env.h"
#include "model/model.h"
#include "store/store.h"
#include "teach/checkpointer.h"
#include "teach/events.h"
#include "teach/holder.h"
#include "teach/jobs.h"
#include "teach/lesson.h"
#include "teach/policy.h"
#include "teach/versions.h"
#include "train/trainer.h"
#include "weights/gate.h"

namespace lathe::teach {

enum class HistoryMode {
  kLesson,    // every lesson can be undone by itself
  kInterval,  // what is learned between two syncs is one version: for models where a sync takes long
};

struct TeacherOptions {
  std::string directory;
  optim::OptimizerConfig optimizer;
  HistoryMode history = HistoryMode::kLesson;
  int64_t max_queued = 16;
  // How long a change may wait for its sync: in kInterval always, in kLesson within one lesson. 0: a sync is made on
  // demand, at the end, and in kLesson before the next lesson.
  int64_t sync_seconds = 600;
  bool materialize = false;
  int64_t lesson_bytes = 0;  // what a lesson may take in addition to the model; 0: what is free
};

class Teacher {
 public:
  // References outlive the teacher. `on_disk`: the version that the directory holds and the weights were loaded from.
  // `policy`: none if null.
  Teacher(model::LoadedModel& loaded, Holder& holder, store::Store& store, io::Env& env, Events& events,
          TeacherOptions options, int64_t on_disk, Policy* policy = nullptr);

  // Before run(). What a process that was killed took with it; the lessons are not learned again by themselves.
  Result<store::Lost> settle() { return checkpointer_.settle(); }
  // Before run(). The live weights are not the directory's: they become a version of their own.
  Status adopt();

  // Queues and stores a lesson. kExhausted when the queue is full or its memory, by estimate, is more than there is
  // (the message has both numbers); kUnavailable at the end.
  Result<std::future<Outcome>> submit(Lesson lesson, const std::string& request_json);
  Status cancel(const std::string& id) { return jobs_.cancel(id); }
  Jobs::Counts counts() const { return jobs_.counts(); }

  // Make the live weights durable: at once, or between two steps of the running lesson.
  Result<Moved> sync() { return wait_for(Command::Kind::kSync, {}); }
  // Go back to the weights of a version on disk (nothing: the last lesson is undone), or take the latest rollback back.
  // The running lesson ends.
  Result<Moved> roll_back(std::optional<int64_t> target) { return wait_for(Command::Kind::kRollBack, target); }
  Result<Moved> redo() { return wait_for(Command::Kind::kRedo, {}); }

  int64_t version() const { return versions_.live(); }
  int64_t durable_version() const { return versions_.durable(); }
  bool torn() const { return versions_.torn(); }

  // Works until `stop`; then finishes the step at hand, fails the lessons not done, syncs what changed, and returns the
  // result of that last sync. Never throws.
  Status run(std::stop_token stop);

 private:
  using Clock = std::chrono::steady_clock;

  Result<Moved> wait_for(Command::Kind kind, std::optional<int64_t> target);
  Status check_memory(const Lesson& lesson) const;
  void work(std::stop_token stop);
  void execute(Command& command);
  void learn(std::unique_ptr<Ticket> ticket, std::stop_token stop);
  Outcome teach(const Lesson& lesson, std::stop_token stop);
  // Steps into `outcome`; an error says why they ended early.
  Status steps(const Lesson& lesson, train::Trainer& trainer, Outcome& outcome, std::stop_token stop);
  // What waits between two steps; an error ends the lesson.
  Status between_steps(Outcome& outcome, std::stop_token stop);
  // Asks the policy; if it refuses, earlier steps of the lesson are taken back.
  Status ask(const Candidate& candidate, Outcome& outcome);
  Result<train::StepReport> commit(train::Trainer& trainer, train::StepProposal proposal, const Lesson& lesson);
  // A failure is logged and tried again later.
  void sync_or_log();
  void sync_if_due(bool idle);

  model::LoadedModel& loaded_;
  Holder& holder_;
  store::Store& store_;
  Events& events_;
  const TeacherOptions options_;
  Policy* const policy_;
  Versions versions_;
  Jobs jobs_;
  Checkpointer checkpointer_;
  weights::Gate own_gate_;  // the trainer's; the holder has the one that readers share

  // Teaching thread only.
  Clock::time_point last_sync_ = Clock::now();
  bool last_sync_failed_ = false;
};

}  // namespace lathe::teach
