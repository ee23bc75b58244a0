#include "delta/numbers.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace lathe::delta {
namespace {

template <class Out, class In>
std::vector<Out> converted(Dtype from, const std::vector<In>& in, Dtype to) {
  std::vector<Out> out(in.size());
  convert(from, std::as_bytes(std::span(in)), to, std::as_writable_bytes(std::span(out)));
  return out;
}

TEST(Numbers, HalvesBecomeTheFloatsThatTheyAre) {
  // 1, -2, the largest, the smallest normal, the largest and smallest subnormal, -0
  const std::vector<uint16_t> halves = {0x3C00, 0xC000, 0x7BFF, 0x0400, 0x03FF, 0x0001, 0x8000};
  const std::vector<float> expected = {1, -2, 65504, 0x1p-14F, 0x1.FF8p-15F, 0x1p-24F, -0.0F};
  const auto floats = converted<float>(Dtype::kF16, halves, Dtype::kF32);
  for (size_t i = 0; i < floats.size(); ++i)
    EXPECT_EQ(std::bit_cast<uint32_t>(floats[i]), std::bit_cast<uint32_t>(expected[i])) << i;
  const auto other = converted<float>(Dtype::kF16, std::vector<uint16_t>{0x7C00, 0xFC00, 0x7E00}, Dtype::kF32);
  EXPECT_TRUE(other[0] == INFINITY && other[1] == -INFINITY && std::isnan(other[2]));
}

TEST(Numbers, AreRoundedToTheNearestOnce) {
  // BF16 has 8 bits of fraction with the leading one: ties go to even, and a double just above a tie goes up, although
  // a float cannot tell it from the tie.
  const std::vector<double> in = {1 + 0x1p-8, 1 + 0x1p-8 + 0x1p-40, 1 + 3 * 0x1p-8, 1 + 0x1p-8 - 0x1p-40,
                                  -1 - 0x1p-8 - 0x1p-40};
  const std::vector<uint16_t> expected = {0x3F80, 0x3F81, 0x3F82, 0x3F80, 0xBF81};
  EXPECT_EQ(converted<uint16_t>(Dtype::kF64, in, Dtype::kBF16), expected);
  const std::vector<float> floats = {1 + 0x1p-8F, 1 + 3 * 0x1p-8F, 0x1p-133F, std::numeric_limits<float>::max(),
                                     -INFINITY};
  EXPECT_EQ(converted<uint16_t>(Dtype::kF32, floats, Dtype::kBF16),
            (std::vector<uint16_t>{0x3F80, 0x3F82, 0x0001, 0x7F80, 0xFF80}));
  const auto nan =
      converted<uint16_t>(Dtype::kF32, std::vector<float>{std::bit_cast<float>(0x7F800001U)}, Dtype::kBF16);
  EXPECT_TRUE((nan[0] & 0x7F80) == 0x7F80 && (nan[0] & 0x7F) != 0) << "NaN stays NaN";
}

TEST(Numbers, EveryBf16SurvivesTheWayThroughF32) {
  std::vector<uint16_t> all;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    if ((bits & 0x7F80U) != 0x7F80U) all.push_back(static_cast<uint16_t>(bits));
  }
  const auto floats = converted<float>(Dtype::kBF16, all, Dtype::kF32);
  EXPECT_EQ(converted<uint16_t>(Dtype::kF32, floats, Dtype::kBF16), all);
}

TEST(Numbers, NanAndInfinityAreFoundInEveryType) {
  const auto finite = [](Dtype dtype, auto value) {
    const std::vector<decltype(value)> two = {decltype(value){}, value};
    return all_finite(dtype, std::as_bytes(std::span(two)));
  };
  EXPECT_TRUE(finite(Dtype::kF16, uint16_t{0x7BFF}) && finite(Dtype::kBF16, uint16_t{0x7F7F}));
  EXPECT_FALSE(finite(Dtype::kF16, uint16_t{0x7C00}));
  EXPECT_FALSE(finite(Dtype::kBF16, uint16_t{0xFFC0}));
  EXPECT_TRUE(finite(Dtype::kF32, 3e38F));
  EXPECT_FALSE(finite(Dtype::kF32, std::nanf("")));
  EXPECT_FALSE(finite(Dtype::kF64, -std::numeric_limits<double>::infinity()));
  EXPECT_TRUE(finite(Dtype::kU16, uint16_t{0x7F80})) << "integers are what they are";
}

}  // namespace
}  // namespace lathe::delta
