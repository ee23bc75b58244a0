// Crashes, errors and full disks at every operation of everything that changes a model directory.
//
// LATHE_CRASH_STATES is how many states to look at (100 000 by default, as in `make test`; `make soak` asks for ten
// million), LATHE_CRASH_THREADS on how many threads, LATHE_CRASH_SEED where the random numbers begin.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "base/parallel.h"
#include "history/crash_harness.h"
#include "history/prune.h"
#include "history/publish.h"
#include "history/push.h"
#include "history/test_model.h"

namespace lathe::history {
namespace {

constexpr const char *kDir = "/m", *kCopy = "/copy", *kLive = "/live";

template <class T>
Status status(const Result<T>& result) {
  return result.ok() ? Status() : Status(result.error());
}

Status sync_to(io::Env& env, const std::string& fill, SyncOptions options = {}, const char* directory = kDir) {
  return status(sync(env, directory, MemoryTensors(small_model(fill)), {}, on_one_thread(std::move(options))));
}

SyncOptions in_place() {
  return {.apply = {.rewrite_above = 2}};
}

void must(const Status& done) {
  if (!done.ok()) throw std::runtime_error(done.error().message);
}

// A directory with versions 0, 1, ... of these weights.
std::function<void(io::FaultEnv&)> versions(std::vector<std::string> fills) {
  return [fills = std::move(fills)](io::FaultEnv& env) {
    write_model(env, kDir, small_model(fills[0]));
    for (size_t i = 1; i < fills.size(); ++i) must(sync_to(env, fills[i]));
  };
}

Status put_in_order(io::FaultEnv& env, const std::string& directory) {
  const auto lock = LATHE_TRY(delta::lock_history(env, directory));
  return status(recover(env, directory, {.threads = 1}));
}

// The weights, and that everything the directory says of itself is true.
std::string observe(io::FaultEnv& env, const std::string& directory) {
  std::string out = contents(env, directory);
  if (!env.exists(delta::Paths(directory).state).value()) return out;
  const auto checked = verify(env, directory, 1);
  if (!checked.ok()) return "verify: " + checked.error().message;
  for (const Damage& damage : checked->damages) return "damage: " + damage.where + ": " + damage.what;
  if (!read_chain(env, delta::Paths(directory)).value().merged.empty()) return "parts of a merge are left";
  const auto left = litter(env, directory);
  return left.empty() ? out : "litter: " + left.front();
}

Scenario scenario(std::string name, std::function<void(io::FaultEnv&)> prepare,
                  std::function<Status(io::FaultEnv&)> act) {
  return {.name = std::move(name),
          .prepare = std::move(prepare),
          .act = std::move(act),
          .recover = [](io::FaultEnv& env) { return put_in_order(env, kDir); },
          .observe = [](io::FaultEnv& env) { return observe(env, kDir); }};
}

// Every version of these must still be what it was; which of the others are left is prune's business.
std::string observe_versions(io::FaultEnv& env, const std::vector<int64_t>& kept) {
  std::string out = observe(env, kDir);
  const auto history = History::open(env, kDir, {.threads = 1});
  if (!history.ok()) return history.error().message;
  for (const int64_t version : kept) {
    const auto source = history->at(version);
    if (!source.ok()) return source.error().message;
    const auto exported = export_version(env, *history, version, "/exported", {.threads = 1});
    out += "version " + std::to_string(version) + ": " +
           (exported.ok() ? contents(env, "/exported") : exported.error().message);
    must(io::remove_tree(env, "/exported"));
  }
  return out;
}

Status publish_now(io::Env& env, int64_t keep) {
  const auto lock = LATHE_TRY(delta::lock_history(env, kDir));
  const History history = LATHE_TRY(History::open(env, kDir, {.threads = 1}));
  return status(publish(env, history, kLive, {.keep = keep}));
}

std::vector<Scenario> scenarios() {
  std::vector<Scenario> all;
  all.push_back(scenario("the first sync", versions({"0"}), [](io::FaultEnv& env) { return sync_to(env, "1"); }));
  all.push_back(
      scenario("a sync that rewrites", versions({"0", "1"}), [](io::FaultEnv& env) { return sync_to(env, "2"); }));
  all.push_back(scenario("a sync in place", versions({"00", "11"}),
                         [](io::FaultEnv& env) { return sync_to(env, "123", in_place()); }));
  all.push_back(scenario("a sync of all in place", versions({"0", "1"}),
                         [](io::FaultEnv& env) { return sync_to(env, "2", in_place()); }));
  all.push_back(scenario(
      "a sync that rewrites what the last wrote in place",
      [](io::FaultEnv& env) {
        versions({"00"})(env);
        must(sync_to(env, "01", in_place()));
      },
      [](io::FaultEnv& env) { return sync_to(env, "12"); }));
  all.push_back(scenario(
      "a sync on a disk that is nearly full",
      [](io::FaultEnv& env) {
        versions({"0", "1"})(env);
        leave_little_room(env, 2'300);
      },
      [](io::FaultEnv& env) { return sync_to(env, "2"); }));
  all.push_back(scenario("a rollback", versions({"0", "1", "2"}),
                         [](io::FaultEnv& env) { return status(rollback(env, kDir, 0, {}, on_one_thread())); }));
  all.push_back(scenario("a rollback in place", versions({"00", "01", "02"}), [](io::FaultEnv& env) {
    return status(rollback(env, kDir, 1, {}, on_one_thread(in_place())));
  }));
  all.push_back(scenario(
      "a sync that replaces symbolic links",
      [](io::FaultEnv& env) {
        write_model(env, kDir, small_model("0"));
        must(env.rename("/m/model-2.safetensors", "/blob"));
        must(env.symlink("/blob", "/m/model-2.safetensors"));
      },
      [](io::FaultEnv& env) { return sync_to(env, "1", {.materialize = true}); }));

  Scenario published = scenario(
      "a publication",
      [](io::FaultEnv& env) {
        versions({"0", "1", "2"})(env);
        must(publish_now(env, 2));
        must(sync_to(env, "3"));
        must(publish_now(env, 2));
        must(sync_to(env, "45"));
      },
      [](io::FaultEnv& env) { return publish_now(env, 2); });
  published.observe = [](io::FaultEnv& env) { return contents(env, kLive); };
  published.unaware = true;
  all.push_back(published);
  Scenario single = published;
  single.name = "a publication of one file";
  single.prepare = [](io::FaultEnv& env) {
    write_model(env, kDir, {{"model.safetensors", "a", std::string(5000, '0')}});
    must(publish_now(env, 2));
    must(status(sync(env, kDir, MemoryTensors({{"", "a", std::string(5000, '1')}}), {}, on_one_thread())));
  };
  all.push_back(single);
  // The published generation must not change with the model directory.
  Scenario beside = scenario(
      "a sync in place beside a publication",
      [](io::FaultEnv& env) {
        versions({"00", "11"})(env);
        must(publish_now(env, 1));
      },
      [](io::FaultEnv& env) { return sync_to(env, "12", in_place()); });
  beside.observe = [](io::FaultEnv& env) { return observe(env, kDir) + "published " + contents(env, kLive); };
  all.push_back(beside);

  Scenario pruned = scenario("a pruning", versions({"0", "1", "2", "3", "45"}), [](io::FaultEnv& env) {
    return status(prune(env, kDir, {.all_hours = 0, .hourly_hours = 0, .daily_days = 0}, INT64_C(9'000'000'000'000),
                        false, {.threads = 1}));
  });
  pruned.observe = [](io::FaultEnv& env) {
    std::string out = observe_versions(env, {0, 4});
    return out + std::to_string(read_chain(env, delta::Paths(kDir)).value().deltas.size());
  };
  all.push_back(pruned);

  Scenario pushed = scenario(
      "a push",
      [](io::FaultEnv& env) {
        versions({"0", "1"})(env);
        must(status(push(env, kDir, kCopy, {.threads = 1})));
        must(sync_to(env, "2"));
      },
      [](io::FaultEnv& env) { return status(push(env, kDir, kCopy, {.threads = 1})); });
  pushed.recover = [](io::FaultEnv& env) -> Status {
    LATHE_TRY(put_in_order(env, kDir));
    return put_in_order(env, kCopy);
  };
  pushed.observe = [](io::FaultEnv& env) { return observe(env, kDir) + observe(env, kCopy); };
  all.push_back(pushed);

  Scenario exported = scenario("an export", versions({"0", "1", "2"}), [](io::FaultEnv& env) -> Status {
    const auto lock = LATHE_TRY(delta::lock_history(env, kDir));
    const History history = LATHE_TRY(History::open(env, kDir, {.threads = 1}));
    return export_version(env, history, 1, kCopy, {.threads = 1});
  });
  exported.observe = [](io::FaultEnv& env) { return env.exists(kCopy).value() ? contents(env, kCopy) : "nothing"; };
  exported.recover = [](io::FaultEnv&) { return Status(); };
  exported.unaware = true;
  all.push_back(exported);
  return all;
}

int64_t setting(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

void add(CrashReport& sum, const CrashReport& part) {
  sum.states += part.states;
  sum.runs += part.runs;
  sum.bad_runs += part.bad_runs;
  sum.disks += part.disks;
  sum.violations += part.violations;
  sum.before += part.before;
  sum.after += part.after;
  for (const auto& [fault, count] : part.by_fault) sum.by_fault[fault] += count;
  if (sum.first_violation.empty()) sum.first_violation = part.first_violation;
}

TEST(Crash, EverythingIsWhollyOldOrNew) {
  const int64_t wanted = setting("LATHE_CRASH_STATES", 100'000);
  const auto threads = static_cast<int>(setting("LATHE_CRASH_THREADS", 1));
  const auto seed = static_cast<uint64_t>(setting("LATHE_CRASH_SEED", 1));
  const std::vector<Scenario> all = scenarios();
  std::vector<CrashReport> reports(all.size());
  std::mutex mutex;
  int64_t states = 0;
  for (uint64_t round = 0; states < wanted && !HasFailure(); ++round) {
    const Status done = parallel_for(all.size(), thread_count(threads), [&](size_t i, size_t) -> Status {
      CrashReport report;
      CrashHarness(all[i], seed + round * 1000 + i).run(8, report);
      const std::lock_guard hold(mutex);
      add(reports[i], report);
      states += report.states;
      return {};
    });
    ASSERT_TRUE(done.ok());
    for (const CrashReport& report : reports) EXPECT_EQ(report.violations, 0) << report.first_violation;
  }
  for (size_t i = 0; i < all.size(); ++i) {
    std::printf("%-50s %9ld states, %9ld old, %9ld new, %8ld different disks, %ld violations\n", all[i].name.c_str(),
                static_cast<long>(reports[i].states), static_cast<long>(reports[i].before),
                static_cast<long>(reports[i].after), static_cast<long>(reports[i].disks),
                static_cast<long>(reports[i].violations));
    EXPECT_GT(reports[i].before, 0) << all[i].name;
    EXPECT_GT(reports[i].after, 0) << all[i].name;
  }
  std::printf("%ld states looked at\n", static_cast<long>(states));
  EXPECT_GE(states, HasFailure() ? 0 : wanted);
}

// The controls: how else people bring a directory up to date. They must fail here, or the harness is blind.

// `rsync --inplace`, or cp over the old file: changed blocks are written where they are, then all is synced.
Status copy_in_place(io::Env& env, const char* from) {
  for (const std::string& name : LATHE_TRY(shard_names(env, from))) {
    const std::string now = LATHE_TRY(io::read_text(env, std::string(kDir) + "/" + name));
    const std::string wanted = LATHE_TRY(io::read_text(env, std::string(from) + "/" + name));
    const auto file = LATHE_TRY(env.open_in_place(std::string(kDir) + "/" + name));
    for (size_t at = 0; at < wanted.size(); at += kBlockBytes) {
      const std::string block = wanted.substr(at, kBlockBytes);
      if (now.compare(at, kBlockBytes, block) != 0) LATHE_TRY(file->write_at(at, std::as_bytes(std::span(block))));
    }
    LATHE_TRY(file->sync());
  }
  return {};
}

// rsync, or safetensors' save_file: each shard as a new file, renamed over the old one; with or without fsync.
Status copy_and_rename(io::Env& env, const char* from, bool synced) {
  for (const std::string& name : LATHE_TRY(shard_names(env, from))) {
    const std::string path = std::string(kDir) + "/" + name,
                      wanted = LATHE_TRY(io::read_text(env, std::string(from) + "/" + name));
    const auto file = LATHE_TRY(env.create(path + ".tmp"));
    LATHE_TRY(file->append(std::as_bytes(std::span(wanted))));
    if (synced) LATHE_TRY(file->sync());
    LATHE_TRY(file->close());
    LATHE_TRY(env.rename(path + ".tmp", path));
  }
  if (synced) LATHE_TRY(env.sync_directory(kDir));
  return {};
}

TEST(Crash, TheControlsFail) {
  const auto both = [](io::FaultEnv& env) {
    write_model(env, kDir, small_model("0"));
    write_model(env, "/new", small_model("1"));
  };
  std::vector<Scenario> controls = {scenario("changed blocks in place, then fsync", both,
                                             [](io::FaultEnv& env) { return copy_in_place(env, "/new"); }),
                                    scenario("new file and rename, no fsync", both,
                                             [](io::FaultEnv& env) { return copy_and_rename(env, "/new", false); }),
                                    scenario("new file, fsync, rename, per shard", both,
                                             [](io::FaultEnv& env) { return copy_and_rename(env, "/new", true); })};
  for (Scenario& control : controls) {
    control.recover = [](io::FaultEnv&) { return Status(); };
    control.observe = [](io::FaultEnv& env) { return contents(env, kDir); };
    CrashReport report;
    for (uint64_t seed = 0; seed < 20; ++seed) CrashHarness(control, seed).run(8, report);
    std::printf("control: %-40s %6ld of %6ld outcomes are neither old nor new (%.0f %%)\n", control.name.c_str(),
                static_cast<long>(report.bad_runs), static_cast<long>(report.runs),
                100.0 * static_cast<double>(report.bad_runs) / static_cast<double>(report.runs));
    EXPECT_GT(report.bad_runs * 10, report.runs) << control.name;
  }
}

}  // namespace
}  // namespace lathe::history
