#include "teach/teacher.h"

#include <algorithm>

#include "base/heap.h"
#include "base/log.h"
#include "base/memory.h"
#include "gpu/device.h"
#include "train/estimate.h"
#include "train/guarded.h"

namespace lathe::teach {
namespace {

const Error kStopping{Code::kUnavailable, "the server is shutting down"};

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

int64_t last_given(store::Store& store) {
  const auto latest = store.latest_version();
  return latest.ok() ? *latest : 0;
}

std::string mebibytes(int64_t bytes) {
  return std::to_string(bytes >> 20) + " MiB";
}

// How long a failed sync waits for its next turn, whatever the interval.
constexpr double kRetrySeconds = 30;

std::vector<store::TensorChange> changes_of(const optim::CommitReport& commit) {
  std::vector<store::TensorChange> changes;
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

}  // namespace

Teacher::Teacher(model::LoadedModel& loaded, Holder& holder, store::Store& store, io::Env& env, Events& events,
                 TeacherOptions options, int64_t on_disk, Policy* policy)
    : loaded_(loaded),
      holder_(holder),
      store_(store),
      events_(events),
      options_(std::move(options)),
      policy_(policy),
      versions_(on_disk, last_given(store)),
      jobs_(store, events, options_.max_queued),
      checkpointer_(*loaded.store, holder, store, env, versions_, events,
                    {.directory = options_.directory, .materialize = options_.materialize}) {}

Status Teacher::adopt() {
  return store_.add_version({.version = versions_.adopt(), .kind = "adopt"});
}

Status Teacher::check_memory(const Lesson& lesson) const {
  const int64_t wanted = train::estimate_lesson(loaded_.model->config(), *loaded_.store, options_.optimizer,
                                                lesson.options, lesson.examples);
  const bool limited = options_.lesson_bytes > 0;
  const int64_t free = limited ? options_.lesson_bytes : train::free_for_lessons(*loaded_.store);
  if (wanted <= free || free == 0) return {};  // 0: the system does not say
  return Error{Code::kExhausted, "this lesson would take about " + mebibytes(wanted) +
                                     " in addition to the model, and " + mebibytes(free) +
                                     (limited ? " are allowed (--lesson-memory)" : " are free") +
                                     "; teach fewer examples at once, or shorter ones"};
}

Result<std::future<Outcome>> Teacher::submit(Lesson lesson, const std::string& request_json) {
  LATHE_TRY(check_memory(lesson));
  return jobs_.submit(std::move(lesson), request_json);
}

Result<Moved> Teacher::wait_for(Command::Kind kind, std::optional<int64_t> target) {
  auto future = LATHE_TRY(jobs_.command(kind, target));
  return future.get();
}

void Teacher::sync_or_log() {
  last_sync_ = Clock::now();
  const auto synced = checkpointer_.sync();
  last_sync_failed_ = !synced.ok();
  if (last_sync_failed_) log::error("sync failed, will be tried again: " + synced.error().message);
}

void Teacher::sync_if_due(bool idle) {
  if (!versions_.pending() || options_.sync_seconds == 0) return;
  const double waited = seconds_since(last_sync_);
  const bool at_once = idle && options_.history == HistoryMode::kLesson;
  const double due = at_once ? 0 : static_cast<double>(options_.sync_seconds);
  if (waited >= (last_sync_failed_ ? std::max(due, kRetrySeconds) : due)) sync_or_log();
}

Status Teacher::run(std::stop_token stop) {
  const auto guarded = [](const char* what, const auto& work) {
    const Status done = train::guarded(what, work);
    if (!done.ok()) log::error(done.error().message);
    return done;
  };
  return guarded("the teaching thread", [&]() -> Status {
    const gpu::OwnStream own_stream(loaded_.model->options().device());
    while (!stop.stop_requested()) {
      [[maybe_unused]] const Status done = guarded("the teaching thread", [&]() -> Status {
        jobs_.wait(stop, std::chrono::seconds(1));
        work(stop);
        return {};
      });
    }
    jobs_.close();
    // What waits ends at once, and says so.
    while (!jobs_.idle()) {
      if (const auto command = jobs_.next_command()) command->done.set_value(kStopping);
      if (auto ticket = jobs_.next_lesson()) jobs_.finish(std::move(ticket), {.error = kStopping});
    }
    if (!versions_.pending() && !versions_.torn()) return {};
    const auto synced = checkpointer_.sync();
    return synced.ok() ? Status() : Status(synced.error());
  });
}

void Teacher::work(std::stop_token stop) {
  if (const auto command = jobs_.next_command()) {
    execute(*command);
  } else if (auto ticket = jobs_.next_lesson()) {
    learn(std::move(ticket), stop);
  }
  if (!stop.stop_requested()) sync_if_due(jobs_.idle());
}

void Teacher::execute(Command& command) {
  const bool sync = command.kind == Command::Kind::kSync;
  Result<Moved> moved = train::guarded(sync ? "the sync" : "the rollback", [&]() -> Result<Moved> {
    return sync ? checkpointer_.sync() : checkpointer_.restore(command.kind, command.target);
  });
  last_sync_ = Clock::now();
  last_sync_failed_ = !moved.ok();
  command.done.set_value(std::move(moved));
}

void Teacher::learn(std::unique_ptr<Ticket> ticket, std::stop_token stop) {
  const Lesson& lesson = ticket->lesson;
  Outcome outcome = teach(lesson, stop);
  if (lesson.durable && versions_.pending()) {
    const auto synced = checkpointer_.sync();
    // What was learned is live; it is not what was asked for.
    if (!synced.ok() && !outcome.error) outcome.error = synced.error().at("learned, but not durable");
  }
  jobs_.finish(std::move(ticket), std::move(outcome));
  give_back_heap();
}

Outcome Teacher::teach(const Lesson& lesson, std::stop_token stop) {
  const auto begin = Clock::now();
  Outcome outcome{.learned = {.previous_version = versions_.live()}};
  const Status done = train::guarded("the lesson", [&]() -> Status {
    // A fresh optimizer per lesson: moments of an earlier, unrelated one would steer this one's first steps.
    train::Trainer trainer(*loaded_.model, *loaded_.store, own_gate_, options_.optimizer);
    LATHE_TRY(steps(lesson, trainer, outcome, stop));
    if (outcome.state == State::kNothingToDo) return {};
    outcome.learned.loss_after = LATHE_TRY(trainer.evaluate(lesson.examples, lesson.options)).loss;
    outcome.state = outcome.learned.loss_after < outcome.learned.loss_before ? State::kSucceeded : State::kNotLearned;
    return {};
  });
  if (!done.ok()) {
    if (outcome.state != State::kRefused && outcome.state != State::kCancelled) outcome.state = State::kFailed;
    outcome.error = done.error().at("after " + std::to_string(outcome.learned.steps) + " steps");
  }
  outcome.learned.version = versions_.live();
  outcome.learned.seconds = seconds_since(begin);
  return outcome;
}

// Every commit is a version of its own.
Status Teacher::steps(const Lesson& lesson, train::Trainer& trainer, Outcome& outcome, std::stop_token stop) {
  store::Learned& learned = outcome.learned;
  LATHE_TRY(checkpointer_.repair());
  for (int64_t step = 0; step < lesson.steps; ++step) {
    LATHE_TRY(between_steps(outcome, stop));
    train::StepProposal proposal = LATHE_TRY(trainer.propose(lesson.examples, lesson.options));
    if (step == 0) {
      learned.loss_before = learned.loss_after = proposal.loss;
      learned.graded_tokens = proposal.graded_tokens;
      learned.tokens = proposal.tokens;
      if (proposal.loss < lesson.until_loss) {
        outcome.state = State::kNothingToDo;
        return {};
      }
      // One lesson, one version on disk.
      if (options_.history == HistoryMode::kLesson && versions_.pending()) sync_or_log();
      learned.previous_version = versions_.live();
    }
    if (step > 0 && proposal.loss < lesson.until_loss) break;
    if (policy_) LATHE_TRY(ask({lesson, step, proposal, trainer}, outcome));
    const train::StepReport report = LATHE_TRY(commit(trainer, std::move(proposal), lesson));
    ++learned.steps;
    learned.changed_fraction +=
        (report.commit.total.changed_fraction() - learned.changed_fraction) / static_cast<double>(learned.steps);
    learned.realised = report.commit.total.realised_share();
    learned.pause_ms = std::max(learned.pause_ms, report.pause_seconds * 1e3);
    if (lesson.report_tensors) outcome.tensors = changes_of(report.commit);
    sync_if_due(/*idle=*/false);
  }
  return {};
}

Status Teacher::between_steps(Outcome& outcome, std::stop_token stop) {
  if (stop.stop_requested()) return kStopping;
  while (jobs_.sync_waits()) execute(*jobs_.next_command());
  const auto reason = jobs_.reason_to_end();
  if (!reason) return {};
  outcome.state = State::kCancelled;
  return *reason;
}

Status Teacher::ask(const Candidate& candidate, Outcome& outcome) {
  const Status allowed = policy_->allow(candidate);
  if (allowed.ok()) return {};
  outcome.state = State::kRefused;
  events_.tell(Refused{.job = candidate.lesson.id, .reason = allowed.error()});
  const Error refused = allowed.error().at("refused by the policy");
  store::Learned& learned = outcome.learned;
  if (learned.steps == 0) return refused;
  // Its earlier steps are only in memory if nothing was synced since: then the directory has what was there before.
  if (versions_.durable() != learned.previous_version)
    return refused.at(std::to_string(learned.steps) + " earlier steps are durable and stay");
  LATHE_TRY(holder_.begin().at("earlier steps could not be taken back"));
  versions_.begin();
  checkpointer_.take_back(/*whole=*/false);
  learned.steps = 0;
  return refused;
}

// After an error the live weights are as before, or as on disk, or versions_ says that they are torn.
Result<train::StepReport> Teacher::commit(train::Trainer& trainer, train::StepProposal proposal, const Lesson& lesson) {
  const int64_t version = versions_.begin();
  // The number is in the store before a weight has changed: whoever has seen it never meets it again with other
  // weights.
  Status ready = store_.add_version(
      {.version = version, .job_id = lesson.id, .loss = proposal.loss, .learning_rate = lesson.options.learning_rate});
  const auto begin = Clock::now();
  if (ready.ok()) ready = holder_.begin();
  if (!ready.ok()) {
    versions_.unchanged();
    [[maybe_unused]] const Status removed = store_.remove_version(version);
    return ready.error();
  }
  const double loss = proposal.loss;
  auto report = trainer.commit(std::move(proposal));
  Status done = report.ok() ? Status() : Status(report.error());
  if (done.ok()) {
    done = holder_.end(version);
    report->pause_seconds = seconds_since(begin);
  }
  if (!done.ok()) {
    checkpointer_.take_back(/*whole=*/report.ok());
    return done.error();
  }
  versions_.committed();
  const Status noted = store_.set_changed_fraction(version, report->commit.total.changed_fraction());
  if (!noted.ok()) log::warning("version " + std::to_string(version) + ": " + noted.error().message);
  events_.tell(Committed{.version = version, .job = lesson.id, .loss = loss});
  return report;
}

}  // namespace lathe::teach
