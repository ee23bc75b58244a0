#include "teach/holder.h"

#include <chrono>

namespace lathe::teach {
namespace {

// How long one change of the weights may take before vLLM's plugin takes this process for hung, and ends it.
constexpr std::chrono::seconds kLease{120};

}  // namespace

Status GateHolder::begin() {
  alone_.emplace(gate_);
  return {};
}

Status GateHolder::end(int64_t /*version*/) {
  alone_.reset();
  return {};
}

Status GateHolder::abandon() {
  Status reloaded = reload_();
  alone_.reset();
  return reloaded;
}

Status SessionHolder::begin() {
  LATHE_TRY(session_.begin(kLease, !live_));
  const Status writing = session_.write();
  if (!writing.ok()) [[maybe_unused]]
    const Status aborted = session_.abort();
  return writing;
}

}  // namespace lathe::teach
