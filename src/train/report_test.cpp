#include "train/report.h"

#include <gtest/gtest.h>

#include "io/fault_env.h"

namespace lathe::train {
namespace {

const std::string kDir = "/report";

StepRecord record_of(int64_t step) {
  return {.step = step,
          .epoch = 0.25 * static_cast<double>(step),
          .loss = 4.0 / static_cast<double>(step),
          .learning_rate = 1e-4,
          .gradient_norm = 0.5,
          .update_norm = 20,
          .limiter = 1.5,
          .limited = 3,
          .changed_fraction = 0.125,
          .realised = 0.99,
          .tokens = 100,
          .graded_tokens = 40,
          .seconds = 0.5};
}

StepReport report_of(int64_t step) {
  StepReport report;
  for (const std::string_view name : {"a.weight", "odd \"one\", that"}) {
    report.commit.tensors.push_back({.name = name,
                                     .gradient_norm = 0.25 * static_cast<double>(step),
                                     .update_norm = 10,
                                     .limiter = 2,
                                     .stats = {.elements = 8, .changed = 2, .intended_squared = 4, .realised_dot = 3}});
  }
  return report;
}

Evaluation evaluation_of(int64_t step) {
  return {.step = step, .loss = 3.0 - 0.1 * static_cast<double>(step)};
}

// A run of which every second step is evaluated, continued after `state`.
struct Driver {
  Driver(io::Env& env, RunState from, int64_t steps = 6) : state(std::move(from)) {
    auto begun = Report::begin(env, kDir, {.title = "a run", .subtitle = "of a test", .steps = steps, .tensors = 2},
                               state, [this](const std::string& message) { warnings.push_back(message); });
    EXPECT_TRUE(begun.ok()) << begun.error().message;
    report = std::move(begun).value();
    if (state.evaluations.empty()) evaluate();
  }
  void evaluate() {
    state.evaluations.push_back(evaluation_of(state.step));
    report->evaluated(state.evaluations.back());
  }
  void step_to(int64_t last) {
    while (state.step < last) {
      state.steps.push_back(record_of(++state.step));
      report->stepped(state.steps.back(), report_of(state.step));
      if (state.step % 2 == 0) evaluate();
    }
  }
  RunState state;
  std::vector<std::string> warnings;
  std::unique_ptr<Report> report;
};

std::string text_of(io::Env& env, const std::string& name) {
  const auto text = io::read_text(env, kDir + "/" + name);
  return text.ok() ? *text : text.error().message;
}

TEST(Report, HasARowPerStepAndOnePerTensor) {
  io::FaultEnv disk;
  Driver driver(disk, {});
  driver.step_to(3);
  driver.report->finish();
  EXPECT_EQ(text_of(disk, "loss.csv"),
            "step,epoch,loss,eval_loss,lr,gradient_norm,update_norm,limiter,limited_tensors,changed_fraction,"
            "realised_update,tokens,graded_tokens,seconds,tokens_per_second\n"
            "0,0,,3,,,,,,,,,,,\n"
            "1,0.25,4,,0.0001,0.5,20,1.5,3,0.125,0.99,100,40,0.5,200\n"
            "2,0.5,2,2.8,0.0001,0.5,20,1.5,3,0.125,0.99,100,40,0.5,200\n"
            "3,0.75,1.33333333,,0.0001,0.5,20,1.5,3,0.125,0.99,100,40,0.5,200\n");
  EXPECT_EQ(text_of(disk, "tensors.csv"),
            "step,tensor,gradient_norm,update_norm,limiter,changed_fraction,realised_update\n"
            "1,a.weight,0.25,10,2,0.25,0.75\n"
            "1,\"odd \"\"one\"\", that\",0.25,10,2,0.25,0.75\n"
            "2,a.weight,0.5,10,2,0.25,0.75\n"
            "2,\"odd \"\"one\"\", that\",0.5,10,2,0.25,0.75\n"
            "3,a.weight,0.75,10,2,0.25,0.75\n"
            "3,\"odd \"\"one\"\", that\",0.75,10,2,0.25,0.75\n");
  EXPECT_NE(text_of(disk, "loss.svg").find("<svg"), std::string::npos);
  EXPECT_EQ(text_of(disk, "loss.png").substr(1, 3), "PNG");
  EXPECT_TRUE(driver.warnings.empty());
}

// Killed after step 5, or in the middle of writing it; saved after step 2 or 3.
TEST(Report, AResumedOneHasTheRowsOfOneThatWasNot) {
  io::FaultEnv straight;
  Driver whole(straight, {});
  whole.step_to(6);
  whole.report->finish();
  for (const int64_t saved : {2, 3}) {
    for (const std::string_view torn : {"", "5,a.wei"}) {
      io::FaultEnv disk;
      RunState state;
      {
        Driver killed(disk, {});
        killed.step_to(saved);
        state = killed.state;
        killed.step_to(5);
      }
      ASSERT_TRUE(
          io::write_text_atomically(disk, kDir + "/tensors.csv", text_of(disk, "tensors.csv") + std::string(torn))
              .ok());
      Driver resumed(disk, state);
      resumed.step_to(6);
      resumed.report->finish();
      for (const char* name : {"loss.csv", "tensors.csv", "loss.png"})
        EXPECT_TRUE(text_of(disk, name) == text_of(straight, name)) << name << " from step " << saved;
    }
  }
}

TEST(Report, ANewRunBeginsANewOne) {
  io::FaultEnv disk, straight;
  Driver(disk, {}).step_to(6);
  Driver again(disk, {}), only(straight, {});
  for (Driver* driver : {&again, &only}) {
    driver->step_to(2);
    driver->report->finish();
  }
  for (const char* name : {"loss.csv", "tensors.csv"}) EXPECT_EQ(text_of(disk, name), text_of(straight, name)) << name;
}

TEST(Report, RowsAreDurableBeforeTheStateOfTheirStepIs) {
  io::FaultEnv disk;
  Driver driver(disk, {});
  driver.step_to(3);
  const std::string listed = text_of(disk, "tensors.csv");
  driver.report->saving(3);
  driver.step_to(5);
  for (int seed = 0; seed < 20; ++seed) {
    io::RandomChoices choices(seed);
    const auto after = disk.after_power_loss(choices);
    EXPECT_TRUE(text_of(*after, "tensors.csv").starts_with(listed)) << seed;
  }
}

TEST(Report, AFullDiskEndsItWithOneWarning) {
  io::FaultEnv disk;
  Driver driver(disk, {});
  driver.step_to(2);
  disk.set_capacity(0);
  driver.step_to(6);
  driver.report->finish();
  ASSERT_EQ(driver.warnings.size(), 1U);
  EXPECT_NE(driver.warnings[0].find(kDir + " ends here"), std::string::npos) << driver.warnings[0];
}

TEST(Report, ADirectoryThatCannotBeMadeIsRefused) {
  io::FaultEnv disk;
  ASSERT_TRUE(io::write_text_atomically(disk, kDir, "a file").ok());
  const auto begun = Report::begin(disk, kDir, {.steps = 1}, {}, [](const std::string&) {});
  ASSERT_FALSE(begun.ok());
  EXPECT_NE(begun.error().message.find("the report cannot be written"), std::string::npos) << begun.error().message;
}

// 1,000,000 rows would be too many to look at: every fifth step's tensors, and the last step's.
TEST(Report, LongRunsListTheirTensorsNowAndThen) {
  io::FaultEnv disk;
  RunState late;
  for (int64_t step = 1; step < 499'990; ++step) late.steps.push_back(record_of(step));
  late.step = std::ssize(late.steps);
  late.evaluations = {evaluation_of(0)};
  Driver driver(disk, late, 500'000);
  driver.step_to(500'000);
  driver.report->finish();
  std::string listed;
  const std::string rows = text_of(disk, "tensors.csv");
  for (size_t at = rows.find("a.weight"); at != std::string::npos; at = rows.find("a.weight", at + 1))
    listed += rows.substr(rows.rfind('\n', at) + 1, 6) + " ";
  EXPECT_EQ(listed, "499991 499996 500000 ");
}

}  // namespace
}  // namespace lathe::train
