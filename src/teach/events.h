// Events: what happens to the weights, for whoever listens: a log, a page, metrics.
//
// Threads: subscribe() and the end of a Subscription from any thread; listeners are called on the thread that emits,
// which is the teaching thread, one event after the other. They return soon and do not wait for the teaching thread.
// Memory: a Subscription ends with its object; the Events outlive it.
// Errors: what a listener throws is logged and kept from the others.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/result.h"
#include "teach/lesson.h"

namespace lathe::teach {

// One step is in the live weights.
struct Committed {
  int64_t version = 0;
  std::string job;
  double loss = 0;  // before the step
};
// The live version is durable. What it took is 0 for a version that was durable already.
struct Synced {
  int64_t version = 0;
  uint64_t delta_bytes = 0;    // of the delta file
  uint64_t bytes_written = 0;  // into shards
  int64_t shards_written = 0;
  double durable_seconds = 0;  // until the version could no longer be lost
  double seconds = 0;          // until the shards held it
};
// Live weights and directory have the weights of an older (or, by a redo, later) version, as a new version.
struct RolledBack {
  Synced version;
  int64_t restores = 0;
  bool redo = false;
};
// A policy refused a proposal; no weight has changed.
struct Refused {
  std::string job;
  Error reason;
};
// Versions that were never durable are gone.
struct Lost {
  store::Lost what;
};
struct Finished {
  std::string job;
  Outcome outcome;
};
using Event = std::variant<Committed, Synced, RolledBack, Refused, Lost, Finished>;

class Events {
 public:
  using Listener = std::function<void(const Event&)>;
  class Subscription {
   public:
    Subscription(Events& events, int64_t id) : events_(events), id_(id) {}
    ~Subscription() { events_.end(id_); }
    Subscription(const Subscription&) = delete;
    Subscription& operator=(const Subscription&) = delete;

   private:
    Events& events_;
    const int64_t id_;
  };

  [[nodiscard]] std::unique_ptr<Subscription> subscribe(Listener listener);
  void tell(const Event& event);

 private:
  void end(int64_t id);

  std::recursive_mutex mutex_;  // guards listeners_, next_; held while they are called, so that none outlives its end
  std::map<int64_t, Listener> listeners_;
  int64_t next_ = 0;
};

// Every event as a line of the log.
void log_event(const Event& event);

}  // namespace lathe::teach
