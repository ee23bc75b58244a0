// CrashHarness: stops an action on a model directory in every way at every operation, recovers, and looks.
//
// A state is one outcome of one fault: what the disk held after it. Once recovered, each must be what it was before
// the action or what it is after it; it must be the latter if the action had reported success. Recovery is stopped in
// the same ways, and what it reports as done must survive a power failure.
// Threads: a harness belongs to one thread; several may run side by side.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/hash.h"
#include "io/fault_env.h"

namespace lathe::history {

struct Scenario {
  std::string name;
  std::function<void(io::FaultEnv&)> prepare;
  std::function<Status(io::FaultEnv&)> act;
  // Puts the directory in order, as any command does first.
  std::function<Status(io::FaultEnv&)> recover;
  // What is there, as text; anything but `before` and `after` is a violation. Called before recovery if `unaware`.
  std::function<std::string(io::FaultEnv&)> observe;
  bool unaware = false;  // readers that know nothing of recovery must see one of the two as well
};

struct CrashReport {
  int64_t states = 0, before = 0, after = 0;
  int64_t runs = 0, bad_runs = 0;  // a run: one fault, one outcome, recovery stopped or not; bad with any violation
  int64_t disks = 0;               // different ones that were observed
  int64_t violations = 0;
  std::map<std::string, int64_t> by_fault;
  std::string first_violation;
};

class CrashHarness {
 public:
  CrashHarness(const Scenario& scenario, uint64_t seed);

  // One pass over all operations, with `outcomes` random outcomes of each.
  void run(int outcomes, CrashReport& report);

  int64_t operations() const { return operations_; }

 private:
  using Env = std::unique_ptr<io::FaultEnv>;

  void crashes(int outcomes);
  void errors(int outcomes);
  void read_errors();
  // The environment that a power failure leaves of `env`; sometimes only a kill.
  Env outcome(const io::FaultEnv& env);
  // One state: recovers it, stopping recovery itself now and then, and compares. `acknowledged`: it must be the new
  // one.
  void check(Env env, bool acknowledged, const std::string& fault);
  void recover_and_compare(Env env, bool acknowledged, const std::string& fault);
  // What the scenario observes; changes nothing. A disk that was seen before is not observed again: recovery brings
  // nearly all outcomes to few disks.
  const std::string& see(const io::FaultEnv& env);
  std::string compare(const io::FaultEnv& env, bool acknowledged, const std::string& fault, const char* when);
  void violation(const std::string& what, const std::string& fault);

  const Scenario& scenario_;
  io::FaultEnv base_;
  std::string before_, after_;
  int64_t operations_ = 0, reads_ = 0;
  std::mt19937_64 random_;
  std::map<Hash128, std::string> seen_;  // by the hash of the disk's image
  CrashReport* report_ = nullptr;
};

}  // namespace lathe::history
