#include "history/crash_harness.h"

#include <cerrno>

namespace lathe::history {

using io::Fault;
using io::FaultEnv;

CrashHarness::CrashHarness(const Scenario& scenario, uint64_t seed) : scenario_(scenario), random_(seed) {
  scenario_.prepare(base_);
  base_.make_durable();
  before_ = see(base_);
  FaultEnv env(base_);
  env.set_fault({});
  const Status done = scenario_.act(env);
  if (!done.ok()) after_ = "the action fails by itself: " + done.error().message;
  operations_ = env.operations();
  reads_ = env.reads();
  if (done.ok()) after_ = see(env);
}

void CrashHarness::run(int outcomes, CrashReport& report) {
  report_ = &report;
  if (after_ == before_) violation("the action changes nothing", "nothing");
  crashes(outcomes);
  errors(outcomes);
  read_errors();
  report.disks += static_cast<int64_t>(seen_.size());
}

CrashHarness::Env CrashHarness::outcome(const FaultEnv& env) {
  if (random_() % 8 == 0) return env.after_kill();
  io::RandomChoices choices(random_());
  return env.after_power_loss(choices);
}

void CrashHarness::crashes(int outcomes) {
  for (int64_t at = 1; at <= operations_ + 1; ++at) {
    FaultEnv env(base_);
    env.set_fault({.kind = Fault::Kind::kCrash, .at = at, .part = static_cast<double>(random_() % 3) / 2});
    const bool acknowledged = scenario_.act(env).ok();
    const std::string fault = "crash at operation " + std::to_string(at);
    for (int i = 0; i < outcomes; ++i) check(outcome(env), acknowledged, fault);
  }
}

void CrashHarness::errors(int outcomes) {
  for (int64_t at = 1; at <= operations_; ++at) {
    for (const Fault::Kind kind : {Fault::Kind::kOnce, Fault::Kind::kFrom}) {
      for (const int error : {EIO, ENOSPC}) {
        FaultEnv env(base_);
        env.set_fault({.kind = kind, .at = at, .error = error, .part = static_cast<double>(random_() % 3) / 2});
        const bool acknowledged = scenario_.act(env).ok();
        env.set_fault({});
        const std::string fault = std::string(error == EIO ? "EIO" : "ENOSPC") + " at operation " + std::to_string(at) +
                                  (kind == Fault::Kind::kFrom ? " and after" : "");
        check(env.after_kill(), acknowledged, fault);
        for (int i = 0; i < outcomes / 4; ++i) check(outcome(env), acknowledged, fault + ", then a crash");
        // The same process tries again; then the power fails.
        const bool again = scenario_.recover(env).ok() && scenario_.act(env).ok();
        for (int i = 0; i < outcomes / 4 + 1; ++i) check(outcome(env), again, fault + ", then again, then a crash");
      }
    }
  }
}

void CrashHarness::read_errors() {
  for (int64_t at = 1; at <= reads_; ++at) {
    FaultEnv env(base_);
    env.set_fault({.kind = Fault::Kind::kRead, .at = at});
    const bool acknowledged = scenario_.act(env).ok();
    env.set_fault({});
    check(outcome(env), acknowledged, "EIO at read " + std::to_string(at));
  }
}

void CrashHarness::check(Env env, bool acknowledged, const std::string& fault) {
  const int64_t violations = report_->violations;
  recover_and_compare(std::move(env), acknowledged, fault);
  ++report_->runs;
  report_->bad_runs += report_->violations > violations;
}

void CrashHarness::recover_and_compare(Env env, bool acknowledged, const std::string& fault) {
  ++report_->states;
  ++report_->by_fault[fault.substr(0, fault.find(' '))];
  if (scenario_.unaware) compare(*env, acknowledged, fault, "before recovery");
  // Recovery is stopped as well, at any of its operations, up to three times.
  for (int stops = static_cast<int>(random_() % 4); stops > 0; --stops) {
    env->set_fault({.kind = Fault::Kind::kCrash, .at = 1 + static_cast<int64_t>(random_() % 12), .part = 0.5});
    const bool recovered = scenario_.recover(*env).ok();
    env = outcome(*env);
    ++report_->states;
    ++report_->by_fault["recovery"];
    if (recovered) break;
  }
  env->set_fault({});
  const Status recovered = scenario_.recover(*env);
  if (!recovered.ok()) return violation("recovery fails: " + recovered.error().message, fault);
  const std::string now = compare(*env, acknowledged, fault, "after recovery");
  // What recovery has built must not stand on something that another power failure takes away.
  io::RandomChoices choices(random_());
  const Env later = env->after_power_loss(choices);
  const Status once_more = scenario_.recover(*later);
  const std::string then = once_more.ok() ? see(*later) : once_more.error().message;
  // A name that nobody waited for may go again, if what is left is whole.
  const bool whole = then == now || (scenario_.unaware && !acknowledged && (then == before_ || then == after_));
  if (!whole) violation("recovered to '" + now + "', then a power failure made it '" + then + "'", fault);
}

const std::string& CrashHarness::see(const FaultEnv& env) {
  const std::string image = env.image();
  const auto [at, fresh] = seen_.try_emplace(checksum128(std::as_bytes(std::span(image))));
  if (fresh) {
    FaultEnv copy(env);
    at->second = scenario_.observe(copy);
  }
  return at->second;
}

std::string CrashHarness::compare(const FaultEnv& env, bool acknowledged, const std::string& fault, const char* when) {
  const std::string now = see(env);
  if (now == after_) {
    ++report_->after;
  } else if (now == before_) {
    ++report_->before;
    if (acknowledged) violation(std::string("what was said to be done is not there ") + when, fault);
  } else {
    violation(std::string(when) + " there is '" + now + "'", fault);
  }
  return now;
}

void CrashHarness::violation(const std::string& what, const std::string& fault) {
  if (report_->violations++ == 0) report_->first_violation = scenario_.name + ", " + fault + ": " + what;
}

}  // namespace lathe::history
