#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

namespace lathe::engine {
namespace {

std::map<int32_t, int> draw(const Sampling& sampling, const std::vector<float>& logits, int count) {
  std::map<int32_t, int> counts;
  Sampler sampler(sampling, {}, 1);
  for (int i = 0; i < count; ++i) {
    std::vector<float> scratch = logits;
    const auto id = sampler.next(scratch);
    EXPECT_TRUE(id.ok());
    ++counts[*id];
  }
  return counts;
}

TEST(Sampler, DrawsFromTheSoftmax) {
  constexpr int kDraws = 40'000;
  const std::vector<float> logits = {1, 2, 0, -1, 3};
  for (const double temperature : {0.5, 1.0, 2.0}) {
    const auto counts = draw({.temperature = temperature}, logits, kDraws);
    double total = 0;
    for (const float x : logits) total += std::exp(x / temperature);
    for (size_t i = 0; i < logits.size(); ++i) {
      const double p = std::exp(logits[i] / temperature) / total;
      const int seen = counts.contains(static_cast<int32_t>(i)) ? counts.at(static_cast<int32_t>(i)) : 0;
      EXPECT_NEAR(seen, kDraws * p, 4 * std::sqrt(kDraws * p * (1 - p)) + 1)
          << "token " << i << " temperature " << temperature;
    }
  }
}

TEST(Sampler, GreedyTakesTheLargestAndOfEqualsTheFirst) {
  EXPECT_EQ(draw({.temperature = 0}, {1, 5, 5, 2}, 3), (std::map<int32_t, int>{{1, 3}}));
}

TEST(Sampler, TopKTopPAndMinPCutTheTail) {
  const std::vector<float> logits = {0, std::log(2.0F), std::log(4.0F), std::log(8.0F)};  // 1/15, 2/15, 4/15, 8/15
  EXPECT_EQ(draw({.top_k = 2}, logits, 2000).size(), 2U);
  EXPECT_EQ(draw({.top_k = 1}, logits, 100).begin()->first, 3);
  EXPECT_EQ(draw({.top_p = 1e-6}, logits, 100).size(), 1U);
  EXPECT_EQ(draw({.top_p = 0.79}, logits, 2000).size(), 2U);  // 8/15 + 4/15 = 0.8
  EXPECT_EQ(draw({.top_p = 0.81}, logits, 4000).size(), 3U);
  EXPECT_EQ(draw({.min_p = 0.26}, logits, 2000).size(), 2U);  // at least 0.26 x 8/15
}

TEST(Sampler, TopPHoldsOverALargeVocabulary) {
  std::vector<float> logits(50'000, 0.0F);
  for (int i = 0; i < 300; ++i) logits[i * 7] = 10;  // 300 e^10 against 49,700
  const auto counts = draw({.top_p = 0.9}, logits, 3000);
  for (const auto& [id, count] : counts) EXPECT_TRUE(id % 7 == 0 && id < 2100) << id;
}

TEST(Sampler, PenaltiesFollowTheirDefinitions) {
  Sampler repetition({.temperature = 0, .repetition_penalty = 2}, std::vector<int32_t>{1}, 1);
  std::vector<float> logits = {3, 5, -1};
  EXPECT_EQ(*repetition.next(logits), 0);  // 5 / 2 < 3
  Sampler presence({.temperature = 0, .presence_penalty = 2}, {}, 1);
  logits = {4, 5, 0};
  EXPECT_EQ(*presence.next(logits), 1);
  logits = {4, 5, 0};
  EXPECT_EQ(*presence.next(logits), 0);  // 5 - 2 < 4
  Sampler frequency({.temperature = 0, .frequency_penalty = 0.6}, {}, 1);
  for (const int32_t expected : {1, 1, 0}) {  // 5, 4.4, 3.8 against 4
    logits = {4, 5, 0};
    EXPECT_EQ(*frequency.next(logits), expected);
  }
}

TEST(Sampler, TheSameSeedGivesTheSameTokens) {
  const std::vector<float> logits(100, 0.0F);
  const auto run = [&](uint64_t seed) {
    Sampler sampler({.seed = seed}, {}, 0);
    std::vector<int32_t> ids;
    for (int i = 0; i < 20; ++i) {
      std::vector<float> scratch = logits;
      ids.push_back(*sampler.next(scratch));
    }
    return ids;
  };
  EXPECT_EQ(run(5), run(5));
  EXPECT_NE(run(5), run(6));
}

TEST(Sampler, LogitsThatAreNotFiniteAreAnError) {
  Sampler sampler({}, {}, 1);
  std::vector<float> nan = {1, NAN}, infinite = {1, INFINITY};
  EXPECT_FALSE(sampler.next(nan).ok());
  EXPECT_FALSE(sampler.next(infinite).ok());
}

TEST(LogProbability, IsLogSoftmaxWithTheBestFirst) {
  const std::vector<float> logits = {0, std::log(2.0F), std::log(5.0F)};
  const Token token = log_probability(logits, 1, 2);
  EXPECT_NEAR(token.logprob, std::log(2.0 / 8), 1e-6);
  ASSERT_EQ(token.top.size(), 2U);
  EXPECT_EQ(token.top[0].id, 2);
  EXPECT_NEAR(token.top[0].logprob, std::log(5.0 / 8), 1e-6);
}

}  // namespace
}  // namespace lathe::engine
