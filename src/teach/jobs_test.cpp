#include "teach/jobs.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

namespace lathe::teach {
namespace {

using namespace std::chrono_literals;

class JobsTest : public ::testing::Test {
 protected:
  ~JobsTest() override { std::filesystem::remove_all(folder_); }

  Result<std::future<Outcome>> submit(const std::string& id) { return jobs_.submit({.id = id}, "{}"); }
  std::string state(const std::string& id) {
    const auto job = store_->job(id);
    return job.ok() ? job->state : job.error().message;
  }

  static std::string new_folder() {
    const auto path = std::filesystem::temp_directory_path() / ("lathe-jobs-" + std::to_string(::getpid()));
    std::filesystem::remove_all(path);
    std::filesystem::create_directories(path);
    return path.string();
  }

  const std::string folder_ = new_folder();
  std::unique_ptr<store::Store> store_ = std::move(store::Store::open(folder_ + "/db")).value();
  Events events_;
  Jobs jobs_{*store_, events_, 2};
};

TEST_F(JobsTest, WhatIsRefusedIsNotStored) {
  ASSERT_TRUE(submit("a").ok() && submit("b").ok());
  const auto third = submit("c");
  ASSERT_FALSE(third.ok());
  EXPECT_EQ(third.error().code, Code::kExhausted);
  EXPECT_EQ(state("c"), "there is no job c");
  EXPECT_TRUE(jobs_.submit({.id = "again", .relearns = "x"}, "{}").ok());  // what was lost always has room
  jobs_.close();
  EXPECT_EQ(submit("d").error().code, Code::kUnavailable);
  EXPECT_EQ(jobs_.command(Command::Kind::kSync).error().code, Code::kUnavailable);
  EXPECT_EQ(store_->jobs(10)->size(), 3U);
}

TEST_F(JobsTest, AnErrorKeepsItsCodeUpToTheReply) {
  auto future = std::move(submit("a")).value();
  auto ticket = jobs_.next_lesson();
  ASSERT_TRUE(ticket);
  EXPECT_EQ(state("a"), "running");
  EXPECT_EQ(jobs_.counts().running, 1);
  EXPECT_FALSE(jobs_.idle());
  jobs_.finish(std::move(ticket), {.error = Error{Code::kUnavailable, "over"}, .learned = {.steps = 3}});
  const Outcome outcome = future.get();
  EXPECT_EQ(outcome.error->code, Code::kUnavailable);
  EXPECT_EQ(store_->job("a")->error_code, "unavailable");
  EXPECT_EQ(store_->job("a")->learned.steps, 3);
  EXPECT_TRUE(jobs_.idle());
}

TEST_F(JobsTest, CancelsWhatWaitsAtOnceAndWhatRunsAfterItsStep) {
  auto first = std::move(submit("first")).value(), second = std::move(submit("second")).value();
  auto running = jobs_.next_lesson();
  EXPECT_FALSE(jobs_.reason_to_end());
  ASSERT_TRUE(jobs_.cancel("second").ok());
  ASSERT_EQ(second.wait_for(0s), std::future_status::ready);
  EXPECT_EQ(second.get().state, State::kCancelled);
  EXPECT_EQ(jobs_.next_lesson(), nullptr);
  ASSERT_TRUE(jobs_.cancel("first").ok());
  ASSERT_TRUE(jobs_.reason_to_end());
  jobs_.finish(std::move(running), {.state = State::kCancelled, .error = *jobs_.reason_to_end()});
  EXPECT_EQ(first.get().state, State::kCancelled);
  EXPECT_EQ(state("first"), "cancelled");
  EXPECT_EQ(jobs_.cancel("first").error().code, Code::kConflict);
  EXPECT_EQ(jobs_.cancel("nobody").error().code, Code::kNotFound);
  // The next lesson does not inherit it.
  ASSERT_TRUE(submit("third").ok());
  auto third = jobs_.next_lesson();
  EXPECT_FALSE(jobs_.reason_to_end());
}

TEST_F(JobsTest, ASyncGoesBetweenTwoStepsAndARollbackEndsTheLesson) {
  ASSERT_TRUE(submit("a").ok());
  auto running = jobs_.next_lesson();
  auto sync = std::move(jobs_.command(Command::Kind::kSync)).value();
  EXPECT_TRUE(jobs_.sync_waits());
  EXPECT_FALSE(jobs_.reason_to_end());
  jobs_.next_command()->done.set_value(Moved{.version = {.version = 7}});
  EXPECT_EQ(sync.get()->version.version, 7);
  EXPECT_FALSE(jobs_.sync_waits());
  ASSERT_TRUE(jobs_.command(Command::Kind::kRollBack).ok());
  ASSERT_TRUE(jobs_.reason_to_end());
  EXPECT_NE(jobs_.reason_to_end()->message.find("rollback"), std::string::npos);
}

TEST(Events, ReachEveryListenerUntilItsEnd) {
  Events events;
  std::vector<int64_t> seen;
  int others = 0;
  const auto throwing = events.subscribe([](const Event&) { throw std::runtime_error("a listener's own fault"); });
  auto listening = events.subscribe([&](const Event& event) { seen.push_back(std::get<Committed>(event).version); });
  const auto counting = events.subscribe([&](const Event&) { ++others; });
  events.tell(Committed{.version = 1});
  listening.reset();
  events.tell(Committed{.version = 2});
  EXPECT_EQ(seen, std::vector<int64_t>{1});
  EXPECT_EQ(others, 2);
}

}  // namespace
}  // namespace lathe::teach
