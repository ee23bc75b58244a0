#include "data/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

namespace lathe::data {
namespace {

std::vector<int64_t> sizes(int64_t n) {
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < n; ++i) tokens.push_back(5 + i * 37 % 50);
  return tokens;
}

TEST(Plan, EveryItemOncePerEpochWithinTheLimits) {
  const auto tokens = sizes(101);
  for (const PlanOptions options : {PlanOptions{.epochs = 3, .batch = 7, .accumulate = 2},
                                    PlanOptions{.epochs = 2, .batch = 1000, .max_tokens = 120, .accumulate = 3},
                                    PlanOptions{.epochs = 1, .batch = 2, .max_tokens = 60}}) {
    std::map<int64_t, int64_t> seen;
    const auto steps = plan(tokens, options).value();
    for (const StepBatches& step : steps) {
      ASSERT_FALSE(step.empty());
      ASSERT_LE(static_cast<int64_t>(step.size()), options.accumulate);
      for (const ItemBatch& batch : step) {
        ASSERT_FALSE(batch.empty());
        EXPECT_LE(static_cast<int64_t>(batch.size()), options.batch);
        int64_t total = 0;
        for (const int64_t item : batch) total += tokens[item], ++seen[item];
        EXPECT_TRUE(options.max_tokens == 0 || total <= options.max_tokens) << total;
      }
    }
    EXPECT_EQ(seen.size(), tokens.size());
    for (const auto& [item, times] : seen) EXPECT_EQ(times, options.epochs) << item;
  }
}

TEST(Plan, ATokenBudgetIsUsed) {
  const std::vector<int64_t> tokens(100, 10);
  EXPECT_EQ(plan(tokens, {.batch = 1000, .max_tokens = 50})->size(), 20U);
}

TEST(Plan, IsAFunctionOfTheSeedAndEveryEpochHasItsOwnOrder) {
  const auto tokens = sizes(50);
  const PlanOptions options{.epochs = 2, .batch = 50, .seed = 4};
  const auto steps = plan(tokens, options).value();
  EXPECT_EQ(plan(tokens, options).value(), steps);
  EXPECT_NE(steps[0], steps[1]);
  PlanOptions other = options;
  other.seed = 5;
  EXPECT_NE(plan(tokens, other).value(), steps);
  EXPECT_FALSE(std::is_sorted(steps[0][0].begin(), steps[0][0].end()));
}

TEST(Plan, FewerStepsAreABeginningOfMore) {
  const auto tokens = sizes(50);
  PlanOptions options{.epochs = 3, .batch = 4, .accumulate = 2};
  const auto all = plan(tokens, options).value();
  options.max_steps = 9;
  const auto few = plan(tokens, options).value();
  ASSERT_EQ(few.size(), 9U);
  EXPECT_TRUE(std::equal(few.begin(), few.end(), all.begin()));
}

TEST(Plan, ShufflesEvenly) {
  // Each of 24 orders of four items, as often as the others: within 5 sigma.
  std::map<std::vector<int64_t>, int> counts;
  constexpr int kTimes = 24000;
  for (int i = 0; i < kTimes; ++i) ++counts[shuffled(4, static_cast<uint32_t>(i), 0)];
  ASSERT_EQ(counts.size(), 24U);
  for (const auto& [order, count] : counts) EXPECT_NEAR(count, kTimes / 24, 5 * 31);
}

TEST(Plan, RefusesByName) {
  const auto message = [](const auto& result) { return result.ok() ? "ok" : result.error().message; };
  EXPECT_NE(message(plan(std::vector<int64_t>{}, {})).find("no example"), std::string::npos);
  EXPECT_NE(message(plan(sizes(3), {.batch = 0})).find("batch"), std::string::npos);
  const std::string too_long = message(plan(std::vector<int64_t>{10, 90, 10}, {.max_tokens = 50}));
  EXPECT_NE(too_long.find("example 2 has 90 tokens"), std::string::npos) << too_long;
}

TEST(HeldOut, TakesAboutTheFractionAndLeavesSome) {
  EXPECT_EQ(held_out(100, 0.1, 1)->size(), 10U);
  EXPECT_EQ(held_out(3, 0.01, 1)->size(), 1U);
  EXPECT_EQ(held_out(3, 0.99, 1)->size(), 2U);
  EXPECT_EQ(held_out(100, 0.1, 1).value(), held_out(100, 0.1, 1).value());
  EXPECT_NE(held_out(100, 0.1, 1).value(), held_out(100, 0.1, 2).value());
  EXPECT_FALSE(held_out(1, 0.5, 1).ok());
  EXPECT_FALSE(held_out(10, 1, 1).ok());
}

}  // namespace
}  // namespace lathe::data
