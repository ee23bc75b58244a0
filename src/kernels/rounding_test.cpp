#include "kernels/rounding.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "kernels/philox.h"

namespace lathe::kernels {
namespace {

float value(uint16_t bf16) {
  return std::bit_cast<float>(uint32_t{bf16} << 16);
}
uint16_t truncated(float x) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);
}

TEST(Philox, KnownAnswers) {  // Random123's kat_vectors
  EXPECT_EQ(philox({0, 0}, {0, 0, 0, 0}), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0xa4093822, 0x299f31d0}, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(StochasticRounding, IsUnbiasedAndStaysAmongTheTwoNeighbours) {
  constexpr int64_t kDraws = 100'000;
  const float start = value(truncated(0.02F));
  const float ulp = value(static_cast<uint16_t>(truncated(start) + 1)) - start;
  for (const float part : {0.01F, 0.25F, 0.5F, 0.9F}) {
    std::vector<uint16_t> w(kDraws, truncated(start));
    const std::vector<float> u(kDraws, -part * ulp);
    const UpdateStats stats = update_bf16(w.data(), u.data(), 0, kDraws, {.step = 1, .seed = 1, .stream = 3});
    int64_t up = 0;
    for (const uint16_t x : w) {
      ASSERT_TRUE(x == truncated(start) || x == truncated(start) + 1);
      up += x != truncated(start);
    }
    const double sigma = std::sqrt(kDraws * part * (1 - part));
    EXPECT_NEAR(static_cast<double>(up), part * kDraws, 4 * sigma);
    EXPECT_EQ(stats.changed, up);
    EXPECT_NEAR(stats.realised_dot / stats.intended_squared, 1, 4 * sigma / (part * kDraws) + 1e-3);
  }
}

TEST(NearestRounding, LosesWhatStochasticKeeps) {
  constexpr int64_t n = 10'000;
  std::vector<uint16_t> w(n, truncated(0.02F));
  const std::vector<float> u(n, 1e-6F);
  const UpdateStats stats = update_bf16(w.data(), u.data(), 0, n, {.step = 1, .rounding = Rounding::kNearest});
  EXPECT_EQ(stats.changed, 0);
  EXPECT_LT(stats.realised_dot / stats.intended_squared, 0.1);
}

TEST(NearestRounding, TiesGoToEven) {
  uint16_t even = 0x3F80, odd = 0x3F81;  // 1 and 1 + 2^-7
  const float half_ulp = -0x1p-8F;
  update_bf16(&even, &half_ulp, 0, 1, {.step = 1, .rounding = Rounding::kNearest});
  update_bf16(&odd, &half_ulp, 0, 1, {.step = 1, .rounding = Rounding::kNearest});
  EXPECT_EQ(even, 0x3F80);
  EXPECT_EQ(odd, 0x3F82);
}

TEST(StochasticRounding, KeepsRepresentableAndSpecialValues) {
  constexpr int64_t n = 4096;
  for (const uint16_t bits :
       {uint16_t{0x0000}, uint16_t{0x8000}, uint16_t{0x3F80}, uint16_t{0x7F7F}, uint16_t{0xFF7F}}) {
    std::vector<uint16_t> w(n, bits);
    const std::vector<float> zero(n, 0.0F);
    update_bf16(w.data(), zero.data(), 0, n, {.step = 1});
    for (const uint16_t x : w) ASSERT_EQ(value(x), value(bits));
  }
  std::vector<uint16_t> nan(n, 0x7FC1);
  const std::vector<float> u(n, 1.0F);
  update_bf16(nan.data(), u.data(), 0, n, {.step = 1});
  for (const uint16_t x : nan) ASSERT_TRUE(std::isnan(value(x)));
  for (const float infinity : {INFINITY, -INFINITY}) {
    std::vector<uint16_t> w(n, 0x3F80);
    const std::vector<float> away(n, -infinity);
    update_bf16(w.data(), away.data(), 0, n, {.step = 1});
    for (const uint16_t x : w) ASSERT_EQ(value(x), infinity);
  }
}

TEST(StochasticRounding, TheLargestNumberDoesNotCarryIntoInfinity) {
  constexpr int64_t n = 4096;
  std::vector<uint16_t> w(n, 0x7F7F);
  const std::vector<float> u(n, -1e36F);
  update_bf16(w.data(), u.data(), 0, n, {.step = 1});
  for (const uint16_t x : w) ASSERT_TRUE(std::isfinite(value(x)));
}

TEST(StochasticRounding, DependsOnTheElementAndNotOnHowTheRangeIsCut) {
  constexpr int64_t n = 5000;
  std::vector<float> u(n);
  normal_numbers(u.data(), n, 1, 2, 3);
  std::vector<uint16_t> whole(n, truncated(0.5F));
  std::vector<uint16_t> cut = whole, other_step = whole;
  const Update update{.step = 1e-4F, .decay = 1e-3F, .seed = 9, .stream = 4, .update_index = 7};
  update_bf16(whole.data(), u.data(), 0, n, update);
  for (int64_t begin = 0, size = 1; begin < n; begin += size, size = (size * 7 + 3) % 1000 + 1) {
    const int64_t count = std::min(size, n - begin);
    update_bf16(cut.data() + begin, u.data() + begin, begin, count, update);
  }
  EXPECT_EQ(whole, cut);
  Update later = update;
  later.update_index++;
  update_bf16(other_step.data(), u.data(), 0, n, later);
  EXPECT_NE(whole, other_step);
}

// The definition in the header, element by element: what any other implementation must agree with to the bit.
TEST(StochasticRounding, TakesItsBitsFromWhereTheHeaderSays) {
  constexpr int64_t n = 1500;
  const Update update{.step = 0.37F, .decay = 0.01F, .seed = 21, .stream = 5, .update_index = 11};
  std::vector<float> u(n);
  normal_numbers(u.data(), n, 1, 2, 3);
  std::vector<uint16_t> w(n), expected(n);
  for (int64_t e = 0; e < n; ++e) {
    w[e] = truncated(0.01F * static_cast<float>(e - 700));
    const auto group = static_cast<uint32_t>(e / 512), k = static_cast<uint32_t>(e % 256);
    const PhiloxBlock block =
        philox({update.seed, update.stream}, {64 * group + k % 64, 0, update.update_index, 0x5EED0001});
    const uint32_t word = block[k / 64], bits = e % 512 < 256 ? word & 0xFFFF : word >> 16;
    const float sum = value(w[e]) - (update.step * u[e] + update.decay * value(w[e]));
    expected[e] = static_cast<uint16_t>((std::bit_cast<uint32_t>(sum) + bits) >> 16);
  }
  const UpdateStats stats = update_bf16(w.data(), u.data(), 0, n, update);
  EXPECT_EQ(w, expected);
  EXPECT_EQ(stats.elements, n);
  EXPECT_GT(stats.changed, n / 2);
}

TEST(StochasticRounding, IsSymmetricInSignAndTakesBf16UpdatesAlike) {
  constexpr int64_t n = 1000;
  const Update update{.step = 0.1F, .seed = 3};
  std::vector<float> u(n), minus_u(n);
  normal_numbers(u.data(), n, 1, 2, 3);
  std::vector<uint16_t> w(n), minus_w(n), u_bf16(n);
  for (int64_t e = 0; e < n; ++e) {
    u_bf16[e] = truncated(u[e]);
    u[e] = value(u_bf16[e]);
    minus_u[e] = -u[e];
    w[e] = truncated(0.02F * static_cast<float>(e + 1));
    minus_w[e] = w[e] ^ 0x8000;
  }
  std::vector<uint16_t> same = w;
  update_bf16(w.data(), u.data(), 0, n, update);
  update_bf16(minus_w.data(), minus_u.data(), 0, n, update);
  update_bf16(same.data(), u_bf16.data(), 0, n, update);
  for (int64_t e = 0; e < n; ++e) ASSERT_EQ(w[e] ^ 0x8000, minus_w[e]);
  EXPECT_EQ(w, same);
}

TEST(ShadowRounding, IsTheNearestOfWhatFp32Weights) {
  constexpr int64_t n = 1500;
  std::vector<float> u(n), exact(n), shadow(n);
  std::vector<uint16_t> w(n), u_bf16(n);
  for (int64_t e = 0; e < n; ++e) {
    w[e] = truncated(0.01F * static_cast<float>(e - 700));
    exact[e] = shadow[e] = value(w[e]);
  }
  for (uint32_t t = 0; t < 50; ++t) {
    normal_numbers(u.data(), n, 1, 2, t);
    for (int64_t e = 0; e < n; ++e) u_bf16[e] = truncated(u[e]), u[e] = value(u_bf16[e]);
    const Update update{.step = 1e-4F, .decay = 1e-3F, .rounding = Rounding::kShadow};
    update_fp32(exact.data(), u.data(), n, update);
    const std::vector<uint16_t> before = w;
    const UpdateStats stats = t % 2 == 0 ? update_shadow(w.data(), shadow.data(), u.data(), n, update)
                                         : update_shadow(w.data(), shadow.data(), u_bf16.data(), n, update);
    int64_t changed = 0;
    for (int64_t e = 0; e < n; ++e) changed += w[e] != before[e] ? 1 : 0;
    EXPECT_EQ(stats.changed, changed);
    ASSERT_EQ(shadow, exact) << t;
    for (int64_t e = 0; e < n; ++e) {
      uint16_t nearest = 0;
      const float minus = -exact[e];
      update_bf16(&nearest, &minus, 0, 1, {.step = 1, .rounding = Rounding::kNearest});
      ASSERT_EQ(w[e], nearest);
    }
  }
}

TEST(ShadowRounding, YieldsToWeightsThatSomebodyElseChanged) {
  std::vector<uint16_t> w{0x3F80, 0x3F80};                              // 1
  std::vector<float> shadow{1 + 0x1p-10F, 3}, u{-0x1p-10F, -0x1p-10F};  // the second was rolled back
  update_shadow(w.data(), shadow.data(), u.data(), 2, {.step = 1});
  EXPECT_EQ(shadow[0], 1 + 0x1p-9F);
  EXPECT_EQ(shadow[1], 1 + 0x1p-10F);
  EXPECT_EQ(w[1], 0x3F80);
}

TEST(Fp32Update, IsOneSubtraction) {
  constexpr int64_t n = 1000;
  std::vector<float> w(n, 0.75F), u(n);
  normal_numbers(u.data(), n, 1, 2, 3);
  const UpdateStats stats = update_fp32(w.data(), u.data(), n, {.step = 0.5F, .decay = 0.25F});
  for (int64_t e = 0; e < n; ++e) ASSERT_EQ(w[e], 0.75F - (0.5F * u[e] + 0.25F * 0.75F));
  EXPECT_EQ(stats.changed, n);
  EXPECT_NEAR(stats.realised_dot / stats.intended_squared, 1, 1e-5);
}

TEST(NormalNumbers, HaveTheirMomentsAndAreAFunctionOfTheirIndex) {
  constexpr int64_t n = 200'000;
  std::vector<float> x(n), prefix(1001), other(n);
  normal_numbers(x.data(), n, 5, 6, 7);
  normal_numbers(prefix.data(), 1001, 5, 6, 7);
  normal_numbers(other.data(), n, 5, 7, 7);
  EXPECT_TRUE(std::equal(prefix.begin(), prefix.end(), x.begin()));
  double mean = 0, square = 0, product = 0;
  for (int64_t i = 0; i < n; ++i) mean += x[i], square += x[i] * x[i], product += x[i] * other[i];
  const double sigma = 1 / std::sqrt(static_cast<double>(n));
  EXPECT_NEAR(mean / n, 0, 4 * sigma);
  EXPECT_NEAR(square / n, 1, 4 * std::sqrt(2.0) * sigma);
  EXPECT_NEAR(product / n, 0, 4 * sigma);
}

}  // namespace
}  // namespace lathe::kernels
