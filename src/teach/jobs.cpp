#include "teach/jobs.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/log.h"

namespace lathe::teach {
namespace {

const Error kStopping{Code::kUnavailable, "the server is shutting down"};
const Error kAsked{Code::kConflict, "it was cancelled"};

}  // namespace

std::string_view state_name(State state) {
  static constexpr std::array<std::string_view, 10> kNames = {"queued",        "running",    "succeeded", "not_learned",
                                                              "nothing_to_do", "cancelled",  "refused",   "failed",
                                                              "lost",          "interrupted"};
  return kNames.at(static_cast<size_t>(state));
}

Result<std::future<Outcome>> Jobs::submit(Lesson lesson, const std::string& request_json) {
  auto ticket = std::make_unique<Ticket>(Ticket{.lesson = std::move(lesson)});
  auto future = ticket->done.get_future();
  {
    // The store is written to under the lock: what was refused must not be in it, and what is taken must be.
    const std::lock_guard hold(mutex_);
    if (closed_) return kStopping;
    if (ticket->lesson.relearns.empty() && std::ssize(lessons_) >= max_queued_) {
      return Error{Code::kExhausted, std::to_string(lessons_.size()) + " lessons are waiting; try again later"};
    }
    LATHE_TRY(store_.add_job({.id = ticket->lesson.id,
                              .state = std::string(state_name(State::kQueued)),
                              .request_json = request_json,
                              .relearns = ticket->lesson.relearns}));
    lessons_.push_back(std::move(ticket));
  }
  arrived_.notify_all();
  return future;
}

Result<std::future<Result<Moved>>> Jobs::command(Command::Kind kind, std::optional<int64_t> target) {
  auto command = std::make_unique<Command>(Command{.kind = kind, .target = target});
  auto future = command->done.get_future();
  {
    const std::lock_guard hold(mutex_);
    if (closed_) return kStopping;
    commands_.push_back(std::move(command));
  }
  arrived_.notify_all();
  return future;
}

Status Jobs::cancel(const std::string& id) {
  std::unique_ptr<Ticket> queued;
  {
    const std::lock_guard hold(mutex_);
    if (id == running_) {
      cancelled_ = true;
      return {};
    }
    const auto found =
        std::find_if(lessons_.begin(), lessons_.end(), [&](const auto& ticket) { return ticket->lesson.id == id; });
    if (found != lessons_.end()) {
      queued = std::move(*found);
      lessons_.erase(found);
    }
  }
  if (queued) {
    finish(std::move(queued), {.state = State::kCancelled, .error = kAsked});
    return {};
  }
  const store::Job job = LATHE_TRY(store_.job(id));
  return Error{Code::kConflict, "job " + id + " has ended already: " + job.state};
}

Jobs::Counts Jobs::counts() const {
  const std::lock_guard hold(mutex_);
  return {.queued = std::ssize(lessons_), .running = running_.empty() ? 0 : 1};
}

void Jobs::close() {
  const std::lock_guard hold(mutex_);
  closed_ = true;
}

void Jobs::wait(std::stop_token stop, std::chrono::milliseconds at_most) {
  std::unique_lock hold(mutex_);
  arrived_.wait_for(hold, stop, at_most, [&] { return !commands_.empty() || !lessons_.empty(); });
}

bool Jobs::idle() const {
  const std::lock_guard hold(mutex_);
  return commands_.empty() && lessons_.empty() && running_.empty();
}

std::unique_ptr<Command> Jobs::next_command() {
  const std::lock_guard hold(mutex_);
  if (commands_.empty()) return nullptr;
  auto command = std::move(commands_.front());
  commands_.pop_front();
  return command;
}

std::unique_ptr<Ticket> Jobs::next_lesson() {
  std::unique_ptr<Ticket> ticket;
  {
    const std::lock_guard hold(mutex_);
    if (lessons_.empty()) return nullptr;
    ticket = std::move(lessons_.front());
    lessons_.pop_front();
    running_ = ticket->lesson.id;
    cancelled_ = false;
  }
  const Status stored = store_.set_state(ticket->lesson.id, std::string(state_name(State::kRunning)));
  if (!stored.ok()) log::error("job " + ticket->lesson.id + ": " + stored.error().message);
  return ticket;
}

bool Jobs::sync_waits() const {
  const std::lock_guard hold(mutex_);
  return !commands_.empty() && commands_.front()->kind == Command::Kind::kSync;
}

std::optional<Error> Jobs::reason_to_end() const {
  const std::lock_guard hold(mutex_);
  if (cancelled_) return kAsked;
  const auto restores =
      std::find_if(commands_.begin(), commands_.end(), [](const auto& c) { return c->kind != Command::Kind::kSync; });
  if (restores == commands_.end()) return std::nullopt;
  return Error{Code::kConflict, "a rollback ended it"};
}

void Jobs::finish(std::unique_ptr<Ticket> ticket, Outcome outcome) {
  store::Job job{.id = ticket->lesson.id,
                 .state = std::string(state_name(outcome.state)),
                 .request_json = "",
                 .learned = outcome.learned};
  if (outcome.error) {
    job.error = outcome.error->message;
    job.error_code = code_name(outcome.error->code);
    std::replace(job.error_code.begin(), job.error_code.end(), ' ', '_');
  }
  const Status stored = store_.finish_job(job, outcome.tensors);
  if (!stored.ok()) log::error("job " + job.id + ": " + stored.error().message);
  {
    const std::lock_guard hold(mutex_);
    if (running_ == job.id) running_.clear();
  }
  events_.tell(Finished{.job = job.id, .outcome = outcome});
  ticket->done.set_value(std::move(outcome));
}

}  // namespace lathe::teach
