#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace lathe::optim {
namespace {

TEST(Schedule, WarmsUpToThePeakAndStays) {
  const Schedule schedule{.peak = 2, .warmup_steps = 4};
  ASSERT_TRUE(schedule.validate().ok());
  EXPECT_EQ(schedule.lr_at(0), 0.5);
  EXPECT_EQ(schedule.lr_at(3), 2);
  EXPECT_EQ(schedule.lr_at(1'000'000), 2);
}

TEST(Schedule, LinearDecaysByEqualSteps) {
  const Schedule schedule{.decay = Decay::kLinear, .peak = 1, .warmup_steps = 2, .steps = 12, .final_fraction = 0.1};
  EXPECT_EQ(schedule.lr_at(2), 1);
  for (int64_t step = 3; step < 12; ++step) EXPECT_NEAR(schedule.lr_at(step - 1) - schedule.lr_at(step), 0.09, 1e-12);
  EXPECT_EQ(schedule.lr_at(11), schedule.lr_at(50));
}

TEST(Schedule, CosineIsHalfWayInTheMiddle) {
  const Schedule schedule{.decay = Decay::kCosine, .peak = 4, .steps = 10, .final_fraction = 0.5};
  EXPECT_EQ(schedule.lr_at(0), 4);
  EXPECT_NEAR(schedule.lr_at(5), 3, 1e-12);
  EXPECT_NEAR(schedule.lr_at(2), 2 + (1 + std::cos(0.2 * std::numbers::pi)), 1e-12);
}

TEST(Schedule, NoStepHasRateZero) {
  for (const Decay decay : {Decay::kConstant, Decay::kLinear, Decay::kCosine}) {
    const Schedule schedule{.decay = decay, .peak = 1e-5, .warmup_steps = 3, .steps = 8};
    for (int64_t step = 0; step < 20; ++step) EXPECT_GT(schedule.lr_at(step), 0) << step;
  }
}

TEST(Schedule, RefusesByName) {
  const auto message = [](const Schedule& s) { return s.validate().ok() ? "" : s.validate().error().message; };
  EXPECT_NE(message({.peak = 0}).find("learning rate"), std::string::npos);
  EXPECT_NE(message({.peak = NAN}).find("learning rate"), std::string::npos);
  EXPECT_NE(message({.warmup_steps = -1}).find("warmup_steps"), std::string::npos);
  EXPECT_NE(message({.final_fraction = 2}).find("final_fraction"), std::string::npos);
  EXPECT_NE(message({.decay = Decay::kLinear, .warmup_steps = 5, .steps = 5}).find("more steps"), std::string::npos);
  EXPECT_FALSE(parse_decay("exponential").ok());
  EXPECT_EQ(parse_decay("cosine").value(), Decay::kCosine);
}

}  // namespace
}  // namespace lathe::optim
