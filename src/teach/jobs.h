// Jobs: lessons that wait for the teaching thread, and what is to be done between two of their steps.
//
// Lessons are taken in order, one at a time. Commands (sync, rollback, redo) go before all lessons, and into a running
// one: a sync is done between two of its steps, a rollback ends it. A lesson that is refused here (queue full, shutting
// down) is not stored.
// Threads: any for submit(), command(), cancel(), counts(), close(); all else on the teaching thread. A future must not
// be waited for on the teaching thread.
// Durability: an accepted lesson is in the store when submit() returns, its outcome before its future has it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>

#include "base/result.h"
#include "store/store.h"
#include "teach/events.h"
#include "teach/lesson.h"

namespace lathe::teach {

// What a command did.
struct Moved {
  Synced version;
  std::optional<int64_t> restores = {};  // of a rollback or redo: whose weights these are
};

struct Command {
  enum class Kind { kSync, kRollBack, kRedo };
  Kind kind = Kind::kSync;
  std::optional<int64_t> target = {};  // of a rollback; nothing: the last lesson is undone
  std::promise<Result<Moved>> done = {};
};

// A lesson that was taken from the queue, or waits in it.
struct Ticket {
  Lesson lesson;
  std::promise<Outcome> done = {};
};

class Jobs {
 public:
  // References outlive the object.
  Jobs(store::Store& store, Events& events, int64_t max_queued)
      : store_(store), events_(events), max_queued_(max_queued) {}

  // kExhausted when the queue is full (a lesson that repeats a lost one always has room), kUnavailable after close().
  Result<std::future<Outcome>> submit(Lesson lesson, const std::string& request_json);
  Result<std::future<Result<Moved>>> command(Command::Kind kind, std::optional<int64_t> target = {});
  // A queued lesson ends now, a running one after its present step. kNotFound if there is none, kConflict if it ended.
  Status cancel(const std::string& id);

  struct Counts {
    int64_t queued = 0, running = 0;
  };
  Counts counts() const;

  // From now on nothing is accepted; what waits can still be taken.
  void close();

  // Waits for something to take.
  void wait(std::stop_token stop, std::chrono::milliseconds at_most);
  bool idle() const;
  std::unique_ptr<Command> next_command();
  std::unique_ptr<Ticket> next_lesson();  // running from now on
  // Between two steps: whether a sync waits; why the running lesson must end.
  bool sync_waits() const;
  std::optional<Error> reason_to_end() const;
  void finish(std::unique_ptr<Ticket> ticket, Outcome outcome);

 private:
  store::Store& store_;
  Events& events_;
  const int64_t max_queued_;

  mutable std::mutex mutex_;  // guards all below
  std::condition_variable_any arrived_;
  std::deque<std::unique_ptr<Command>> commands_;
  std::deque<std::unique_ptr<Ticket>> lessons_;
  std::string running_;  // id; empty: none
  bool cancelled_ = false;
  bool closed_ = false;
};

}  // namespace lathe::teach
