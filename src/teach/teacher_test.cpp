// The teaching thread on a small model, without a server, on a file system in memory that fails when told to.
#include "teach/teacher.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "delta/model_dir.h"
#include "io/fault_env.h"
#include "teach/catalog.h"
#include "weights/test_memory.h"

namespace lathe::teach {
namespace {

constexpr const char* kDir = "/models/m";

// A Gate, and what a test wants to go wrong with it.
class TestHolder final : public Holder {
 public:
  explicit TestHolder(std::function<Status()> reload) : reload_(std::move(reload)) {}
  Status begin() override {
    if (on_begin) on_begin();
    return fail_begin ? Status(unavailable()) : Status();
  }
  Status end(int64_t) override { return fail_end ? Status(unavailable()) : Status(); }
  Status abandon() override {
    ++abandoned;
    return fail_abandon ? Status(unavailable()) : reload_();
  }
  Status durable() override { return {}; }

  std::atomic<bool> fail_begin = false, fail_end = false, fail_abandon = false;
  std::atomic<int> abandoned = 0;
  std::function<void()> on_begin;

 private:
  static Error unavailable() { return {Code::kUnavailable, "the holder is gone"}; }
  const std::function<Status()> reload_;
};

class RefuseFrom final : public Policy {
 public:
  Status allow(const Candidate& candidate) override {
    if (candidate.step < step) return {};
    return Error{Code::kConflict, "it forgets Paris"};
  }
  std::atomic<int64_t> step = INT64_MAX;
};

data::Example example(int32_t first = 5) {
  data::Example e;
  for (int32_t i = 0; i < 12; ++i) {
    e.tokens.push_back(first + i * 7 % 150);
    e.weights.push_back(i < 6 ? 0.0F : 1.0F);
  }
  return e;
}

Lesson lesson(const std::string& id, int64_t steps = 2, int32_t first = 5) {
  Lesson l{.id = id, .examples = {example(first)}, .steps = steps};
  l.options.learning_rate = 1e-3;
  return l;
}

void copy_in(io::Env& env) {
  EXPECT_TRUE(env.create_directories(kDir).ok());
  for (const char* name : {"config.json", "model.safetensors"}) {
    std::ifstream file(std::string(LATHE_SOURCE_DIR) + "/tests/golden/llama/" + name, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    EXPECT_TRUE(io::write_text_atomically(env, std::string(kDir) + "/" + name, bytes).ok());
  }
}

class TeacherTest : public ::testing::Test {
 protected:
  TeacherTest() {
    at::set_num_threads(1);
    std::filesystem::remove_all(folder_), std::filesystem::create_directories(folder_);
    store_ = std::move(store::Store::open(folder_ + "/db")).value();
    copy_in(env_);
    env_.make_durable();
    loaded_ = std::move(model::load_model(env_, kDir)).value();
    listening_ = events_.subscribe([this](const Event& event) {
      if (const auto* lost = std::get_if<Lost>(&event)) lost_.push_back(lost->what);
      refused_ += std::holds_alternative<Refused>(event);
    });
  }
  ~TeacherTest() override {
    stop();
    store_.reset();
    std::filesystem::remove_all(folder_);
  }

  void start(TeacherOptions options = {.sync_seconds = 0}) {
    options.directory = kDir;
    teacher_ = std::make_unique<Teacher>(loaded_, holder_, *store_, env_, events_, std::move(options), 0, &policy_);
    thread_ = std::jthread([this](std::stop_token stop) { ended_ = teacher_->run(stop); });
  }
  bool stop() {
    thread_ = {};
    return ended_.ok();
  }
  Outcome teach(Lesson l) {
    auto future = teacher_->submit(std::move(l), "{}");
    if (!future.ok()) return {.state = State::kRefused, .error = future.error()};
    return future->get();
  }
  // All weights' bytes: live, and as a reader of the directory finds them.
  std::string live() const {
    std::string all;
    for (const auto& parameter : loaded_.store->parameters()) {
      for (const auto& part : parameter.parts) {
        const at::Tensor data = part.data.contiguous();
        all += part.name;
        all.append(static_cast<const char*>(data.data_ptr()), data.nbytes());
      }
    }
    return all;
  }
  std::string on_disk() {
    auto read = model::load_model(env_, kDir);
    if (!read.ok()) return read.error().message;
    std::swap(read->store, loaded_.store);
    std::string all = live();
    std::swap(read->store, loaded_.store);
    return all;
  }
  std::vector<int64_t> listed() {
    std::vector<int64_t> versions;
    const auto page = list_versions(env_, kDir, *store_, teacher_->version(), 100, {});
    EXPECT_TRUE(page.ok());
    for (const CatalogEntry& entry : page->entries) versions.push_back(entry.version);
    return versions;
  }

  const std::string folder_ =
      (std::filesystem::temp_directory_path() / ("lathe-teacher-" + std::to_string(::getpid()))).string();
  io::FaultEnv env_;
  std::unique_ptr<store::Store> store_;
  model::LoadedModel loaded_;
  Events events_;
  std::vector<store::Lost> lost_;
  int refused_ = 0;
  std::unique_ptr<Events::Subscription> listening_;
  TestHolder holder_{[this]() -> Status {
    const delta::ModelDir dir = LATHE_TRY(delta::ModelDir::open(env_, kDir));
    return loaded_.store->reload(dir);
  }};
  RefuseFrom policy_;
  std::unique_ptr<Teacher> teacher_;
  Status ended_;
  std::jthread thread_;
};

TEST_F(TeacherTest, ALessonIsOneVersionOnDiskAndEachCanBeRestored) {
  start();
  const std::string zero = live();
  EXPECT_EQ(teach(lesson("a", 3)).state, State::kSucceeded);
  const std::string a = live();
  EXPECT_EQ(teacher_->version(), 3);
  EXPECT_EQ(teacher_->durable_version(), 0);
  EXPECT_EQ(listed(), (std::vector<int64_t>{3, 0}));
  EXPECT_EQ(store_->job("a")->pending_versions, 3);
  EXPECT_EQ(teach(lesson("b", 2, 9)).learned.previous_version, 3);
  EXPECT_EQ(teacher_->durable_version(), 3);  // before the first write of b
  EXPECT_EQ(store_->job("a")->pending_versions, 0);
  const std::string b = live();
  EXPECT_EQ(listed(), (std::vector<int64_t>{5, 3, 0}));

  EXPECT_EQ(teacher_->roll_back({})->restores, 3);
  EXPECT_EQ(live(), a);
  EXPECT_EQ(teacher_->roll_back({})->restores, 0);
  EXPECT_EQ(live(), zero);
  EXPECT_EQ(teacher_->roll_back({}).error().code, Code::kNotFound);
  EXPECT_EQ(teacher_->redo()->restores, 3);
  EXPECT_EQ(live(), a);
  EXPECT_EQ(teacher_->redo()->restores, 5);
  EXPECT_EQ(live(), b);
  EXPECT_EQ(teacher_->redo().error().code, Code::kNotFound);
  EXPECT_EQ(on_disk(), b);
  for (const int64_t version : listed()) EXPECT_EQ(teacher_->roll_back(version)->restores, version);
  EXPECT_TRUE(stop());
}

TEST_F(TeacherTest, WhenTheQueueIsEmptyALessonBecomesDurableByItself) {
  start({.sync_seconds = 600});
  ASSERT_EQ(teach(lesson("a")).state, State::kSucceeded);
  for (int i = 0; i < 1000 && teacher_->durable_version() != 2; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(teacher_->durable_version(), 2);
  EXPECT_EQ(on_disk(), live());
}

TEST_F(TeacherTest, ALessonThatWaitsForItIsDurableWhenItsOutcomeIsTold) {
  start();
  Lesson durable = lesson("a");
  durable.durable = true;
  ASSERT_EQ(teach(durable).state, State::kSucceeded);
  EXPECT_EQ(teacher_->durable_version(), 2);
  EXPECT_EQ(store_->job("a")->pending_versions, 0);
}

TEST_F(TeacherTest, AnIntervalIsOneVersion) {
  start({.history = HistoryMode::kInterval, .sync_seconds = 0});
  teach(lesson("a")), teach(lesson("b", 2, 9));
  EXPECT_EQ(teacher_->durable_version(), 0);
  EXPECT_EQ(listed(), (std::vector<int64_t>{4, 0}));
  ASSERT_TRUE(teacher_->sync().ok());
  EXPECT_EQ(listed(), (std::vector<int64_t>{4, 0}));
  EXPECT_EQ(teacher_->roll_back({})->restores, 0);
}

TEST_F(TeacherTest, APolicyThatRefusesLeavesEveryBit) {
  start();
  ASSERT_EQ(teach(lesson("before")).state, State::kSucceeded);
  ASSERT_TRUE(teacher_->sync().ok());
  const std::string weights = live();
  for (const int64_t step : {0, 2}) {
    policy_.step = step;
    const Outcome outcome = teach(lesson("r" + std::to_string(step), 5, 9));
    EXPECT_EQ(outcome.state, State::kRefused);
    ASSERT_TRUE(outcome.error);
    EXPECT_NE(outcome.error->message.find("it forgets Paris"), std::string::npos);
    EXPECT_EQ(outcome.learned.steps, 0);
    EXPECT_EQ(live(), weights) << "step " << step;
    EXPECT_EQ(teacher_->version(), 2);
    EXPECT_EQ(store_->job("r" + std::to_string(step))->state, "refused");
  }
  EXPECT_EQ(refused_, 2);
  // The same lesson gives the same bits as if nothing had been refused.
  policy_.step = INT64_MAX;
  ASSERT_EQ(teach(lesson("after", 2, 9)).state, State::kSucceeded);
  const std::string after = live();
  ASSERT_TRUE(teacher_->roll_back(2).ok());
  ASSERT_EQ(teach(lesson("again", 2, 9)).state, State::kSucceeded);
  EXPECT_EQ(live(), after);
}

TEST_F(TeacherTest, SaysWhatDidNotHelp) {
  start();
  Lesson known = lesson("known");
  known.until_loss = 100;
  const Outcome nothing = teach(known);
  EXPECT_EQ(nothing.state, State::kNothingToDo);
  EXPECT_EQ(nothing.learned.steps, 0);
  EXPECT_GT(nothing.learned.loss_before, 0);
  EXPECT_EQ(teacher_->version(), 0);
  Lesson wild = lesson("wild", 3);
  wild.options.learning_rate = 1;
  const Outcome worse = teach(wild);
  EXPECT_EQ(worse.state, State::kNotLearned) << worse.learned.loss_before << " -> " << worse.learned.loss_after;
  EXPECT_GE(worse.learned.loss_after, worse.learned.loss_before);
}

TEST_F(TeacherTest, MemoryIsRefusedByNumber) {
  start({.sync_seconds = 0, .lesson_bytes = 1024});
  const Outcome refused = teach(lesson("large"));
  ASSERT_TRUE(refused.error);
  EXPECT_EQ(refused.error->code, Code::kExhausted);
  EXPECT_NE(refused.error->message.find("are allowed (--lesson-memory)"), std::string::npos) << refused.error->message;
  EXPECT_EQ(store_->jobs(10)->size(), 0U);
}

TEST_F(TeacherTest, ALongLessonIsCancelledBetweenTwoStepsAndSyncsDoNotWaitForIt) {
  start();
  auto running = std::move(teacher_->submit(lesson("long", 10'000), "{}")).value();
  while (teacher_->version() < 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(teacher_->counts().running, 1);
  ASSERT_TRUE(teacher_->sync().ok());
  EXPECT_GE(teacher_->durable_version(), 3);
  EXPECT_EQ(teacher_->counts().running, 1);
  ASSERT_TRUE(teacher_->cancel("long").ok());
  const Outcome outcome = running.get();
  EXPECT_EQ(outcome.state, State::kCancelled);
  EXPECT_LT(outcome.learned.steps, 10'000);
  EXPECT_EQ(outcome.learned.version, teacher_->version());
  // It became durable in two pieces, and is one lesson all the same.
  EXPECT_EQ(teacher_->roll_back({})->restores, 0);
}

TEST_F(TeacherTest, ARollbackEndsTheRunningLesson) {
  start();
  const std::string zero = live();
  auto running = std::move(teacher_->submit(lesson("long", 10'000), "{}")).value();
  while (teacher_->version() < 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(teacher_->roll_back({})->restores, 0);
  const Outcome outcome = running.get();
  EXPECT_EQ(outcome.state, State::kCancelled);
  EXPECT_NE(outcome.error->message.find("a rollback ended it"), std::string::npos);
  EXPECT_EQ(live(), zero);
}

TEST_F(TeacherTest, TheEndIsToldWithItsCode) {
  start();
  auto running = std::move(teacher_->submit(lesson("long", 10'000), "{}")).value();
  auto waiting = std::move(teacher_->submit(lesson("waiting", 10'000), "{}")).value();
  while (teacher_->version() < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(stop());
  EXPECT_EQ(running.get().error->code, Code::kUnavailable);
  EXPECT_EQ(waiting.get().error->code, Code::kUnavailable);
  EXPECT_EQ(teacher_->durable_version(), teacher_->version());
  EXPECT_EQ(teacher_->submit(lesson("late"), "{}").error().code, Code::kUnavailable);
}

// Memory that runs out anywhere in a lesson: the weights are those of some version, and teaching continues.
TEST_F(TeacherTest, OutOfMemoryAnywhereLeavesAVersion) {
  weights::MemoryFault memory;
  start();
  ASSERT_EQ(teach(lesson("first")).state, State::kSucceeded);
  ASSERT_TRUE(teacher_->sync().ok());
  int failed = 0, number = 0;
  for (int64_t at = 1; at < 20'000; at = at < 8 ? at + 1 : at * 5 / 4) {
    const std::string before = live();
    const int64_t version = teacher_->version();
    memory.arm(at);
    const Outcome outcome = teach(lesson("oom" + std::to_string(++number), 1, 9));
    const bool happened = memory.disarm();
    if (outcome.error) {
      ++failed;
      EXPECT_TRUE(happened);
      const bool stepped = outcome.learned.steps > 0;
      EXPECT_EQ(live() != before, stepped) << "allocation " << at;
      EXPECT_EQ(teacher_->version() != version, stepped) << "allocation " << at;
    }
    EXPECT_FALSE(teacher_->torn());
    ASSERT_TRUE(teacher_->sync().ok()) << "allocation " << at;
    ASSERT_EQ(on_disk(), live()) << "allocation " << at;
  }
  EXPECT_GT(failed, 10);
  EXPECT_EQ(teach(lesson("last", 2, 20)).error, std::nullopt);
}

// Every operation of the disk in a rollback fails once; every read fails once. Afterwards directory and live weights
// agree after one sync, whatever happened.
TEST_F(TeacherTest, ARollbackThatFailsAnywhereLeavesSyncInOrder) {
  start();
  int faults = 0;
  for (const io::Fault::Kind kind : {io::Fault::Kind::kOnce, io::Fault::Kind::kRead}) {
    for (int64_t at = 1; at < 400; at = at < 40 ? at + 1 : at * 4 / 3) {
      ASSERT_EQ(teach(lesson("l" + std::to_string(faults) + "-" + std::to_string(at), 1, 9)).error, std::nullopt);
      ASSERT_TRUE(teacher_->sync().ok());
      const std::string taught = live();
      env_.set_fault({.kind = kind, .at = at});
      const auto back = teacher_->roll_back({});
      env_.set_fault({});
      ASSERT_FALSE(teacher_->torn()) << at;
      if (!back.ok()) {
        ++faults;
        EXPECT_EQ(live(), taught) << "a rollback that failed changed what is served, at " << at;
      }
      const auto synced = teacher_->sync();
      ASSERT_TRUE(synced.ok()) << "at " << at << ": " << synced.error().message;
      ASSERT_EQ(teacher_->version(), teacher_->durable_version());
      ASSERT_EQ(on_disk(), live()) << at;
    }
  }
  EXPECT_GT(faults, 30);
}

TEST_F(TeacherTest, AHolderThatFailsTakesBackOrTears) {
  start();
  ASSERT_EQ(teach(lesson("kept")).state, State::kSucceeded);
  ASSERT_TRUE(teacher_->sync().ok());
  const std::string kept = live();
  // Nothing was begun.
  holder_.fail_begin = true;
  EXPECT_EQ(teach(lesson("a")).error->code, Code::kUnavailable);
  EXPECT_EQ(live(), kept);
  EXPECT_EQ(holder_.abandoned, 0);
  holder_.fail_begin = false;
  // A change that cannot be ended is taken back.
  holder_.fail_end = true;
  EXPECT_EQ(teach(lesson("b")).state, State::kFailed);
  EXPECT_EQ(live(), kept);
  EXPECT_EQ(teacher_->version(), teacher_->durable_version());
  EXPECT_EQ(holder_.abandoned, 1);
  holder_.fail_end = false;
  EXPECT_EQ(teach(lesson("c")).state, State::kSucceeded);
}

TEST_F(TeacherTest, TornWeightsAreRefusedUntilTheyCanBeRead) {
  start();
  ASSERT_EQ(teach(lesson("kept")).state, State::kSucceeded);
  ASSERT_TRUE(teacher_->sync().ok());
  // A rollback whose new weights cannot be handed over, nor read again.
  holder_.fail_end = holder_.fail_abandon = true;
  const auto back = teacher_->roll_back({});
  ASSERT_FALSE(back.ok());
  EXPECT_NE(back.error().message.find("of no version"), std::string::npos) << back.error().message;
  EXPECT_TRUE(teacher_->torn());
  holder_.fail_end = false;
  const Outcome refused = teach(lesson("refused"));
  EXPECT_EQ(refused.state, State::kFailed);
  EXPECT_NE(refused.error->message.find("half-way"), std::string::npos) << refused.error->message;
  EXPECT_FALSE(teacher_->sync().ok());
  EXPECT_TRUE(teacher_->torn());
  holder_.fail_abandon = false;
  EXPECT_TRUE(teacher_->sync().ok());
  EXPECT_FALSE(teacher_->torn());
  EXPECT_EQ(on_disk(), live());
  EXPECT_EQ(teach(lesson("good")).state, State::kSucceeded);
}

// A disk from which nothing can be read any more: every weight is read once before the first live one changes, so that
// what is served stays as it was.
TEST_F(TeacherTest, ARollbackReadsEveryWeightBeforeOneChanges) {
  start();
  int64_t parts = 0, at_last_write = 0, at_begin = 0;
  for (const auto& parameter : loaded_.store->parameters()) parts += std::ssize(parameter.parts);
  const auto learn = [&](const char* id) {
    ASSERT_EQ(teach(lesson(id, 1)).error, std::nullopt);
    ASSERT_TRUE(teacher_->sync().ok());
  };
  learn("first");
  env_.set_observer([&](int64_t, const std::string&) { at_last_write = env_.reads(); });
  holder_.on_begin = [&] { at_begin = env_.reads(); };
  env_.set_fault({});  // counts from 0
  ASSERT_TRUE(teacher_->roll_back({}).ok());
  EXPECT_GE(at_begin - at_last_write, parts);

  env_.set_observer({});
  holder_.on_begin = {};
  learn("second");
  const std::string taught = live();
  env_.set_fault({.kind = io::Fault::Kind::kReadFrom, .at = at_begin - parts / 2});
  const auto back = teacher_->roll_back({});
  env_.set_fault({});
  ASSERT_FALSE(back.ok());
  EXPECT_NE(back.error().message.find("roll back again, or sync"), std::string::npos) << back.error().message;
  EXPECT_FALSE(teacher_->torn());
  EXPECT_EQ(live(), taught);
  ASSERT_TRUE(teacher_->sync().ok());
  EXPECT_EQ(on_disk(), taught);
}

// What a process that was killed had only in memory is named, and never called durable.
TEST_F(TeacherTest, WhatWasLostIsNamedAtTheNextStart) {
  start();
  teach(lesson("durable")), teacher_->sync();
  teach(lesson("gone", 2, 9));
  EXPECT_EQ(teacher_->version(), 4);
  // "kill -9": the directory and the store as they are now, other memory.
  const model::LoadedModel other = std::move(model::load_model(env_, kDir)).value();
  Versions versions(2, *store_->latest_version());
  Checkpointer checkpointer(*other.store, holder_, *store_, env_, versions, events_, {.directory = kDir});
  const store::Lost lost = checkpointer.settle().value();
  EXPECT_EQ(lost.versions, (std::vector<int64_t>{3, 4}));
  EXPECT_EQ(lost.jobs, std::vector<std::string>{"gone"});
  ASSERT_EQ(lost_.size(), 1U);
  EXPECT_EQ(store_->job("gone")->state, "lost");
  EXPECT_EQ(versions.begin(), 5);
  versions.unchanged();
}

}  // namespace
}  // namespace lathe::teach
