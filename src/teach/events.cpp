#include "teach/events.h"

#include "base/log.h"
#include "base/units.h"

namespace lathe::teach {
namespace {

std::string text_of(const Synced& synced) {
  return mebibytes(synced.delta_bytes) + " durable in " + decimal(synced.durable_seconds) + " s, " +
         mebibytes(synced.bytes_written) + " of shards in " + decimal(synced.seconds) + " s";
}

std::string list_of(const std::vector<int64_t>& versions) {
  std::string text;
  for (size_t i = 0; i < versions.size() && i < 20; ++i) text += (i > 0 ? ", " : "") + std::to_string(versions[i]);
  return text + (versions.size() > 20 ? " and " + std::to_string(versions.size() - 20) + " more" : "");
}

struct Logger {
  void operator()(const Committed&) const {}  // a line for each step would drown the others
  void operator()(const Synced& synced) const {
    log::info("synced version " + std::to_string(synced.version) + ": " + text_of(synced));
  }
  void operator()(const RolledBack& back) const {
    log::info((back.redo ? "redone: " : "rolled back: ") + std::string("version ") +
              std::to_string(back.version.version) + " has the weights of version " + std::to_string(back.restores) +
              ": " + text_of(back.version));
  }
  void operator()(const Refused& refused) const {
    log::warning("the policy refused " + refused.job + ": " + refused.reason.message);
  }
  void operator()(const Lost& lost) const {
    log::warning("versions that were never durable are lost: " + list_of(lost.what.versions) + " (" +
                 std::to_string(lost.what.jobs.size()) + " lessons)");
  }
  void operator()(const Finished& finished) const {
    const store::Learned& l = finished.outcome.learned;
    const std::string head = finished.job + " " + std::string(state_name(finished.outcome.state));
    if (finished.outcome.error) return log::warning(head + ": " + finished.outcome.error->message);
    log::info(head + ": version " + std::to_string(l.version) + ", " + std::to_string(l.steps) + " steps, loss " +
              decimal(l.loss_before, 3) + " -> " + decimal(l.loss_after, 3) + " in " + decimal(l.seconds) + " s");
  }
};

}  // namespace

std::unique_ptr<Events::Subscription> Events::subscribe(Listener listener) {
  const std::lock_guard hold(mutex_);
  listeners_.emplace(next_, std::move(listener));
  return std::make_unique<Subscription>(*this, next_++);
}

void Events::end(int64_t id) {
  const std::lock_guard hold(mutex_);
  listeners_.erase(id);
}

void Events::tell(const Event& event) {
  const std::lock_guard hold(mutex_);
  const std::map<int64_t, Listener> listeners = listeners_;  // one may end a subscription, or begin one
  for (const auto& [id, listener] : listeners) {
    if (!listeners_.contains(id)) continue;
    try {
      listener(event);
    } catch (const std::exception& e) {
      log::error(std::string("a listener to events failed: ") + e.what());
    }
  }
}

void log_event(const Event& event) {
  std::visit(Logger(), event);
}

}  // namespace lathe::teach
