#include "codec/bit_ranks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "codec/wide.h"

namespace lathe::codec {
namespace {

// With the loops for AVX-512, if there is one, and with those for other CPUs.
class BitRanks : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override { wide_is_off = !GetParam(); }
  void TearDown() override { wide_is_off = false; }
};
INSTANTIATE_TEST_SUITE_P(Wide, BitRanks, testing::Bool());

TEST_P(BitRanks, EqualBitsOfAnyLength) {
  std::mt19937 random(1);
  for (size_t count = 0; count < 400; ++count) {
    std::vector<uint8_t> values(count);
    for (uint8_t& value : values) value = static_cast<uint8_t>(random() % 4 * 85);  // 0, 85, 170, 255
    for (const uint8_t wanted : {0, 85, 170, 255, 1}) {
      std::vector<uint64_t> words(words_for(count) + 1, 7);
      equal_bits(values, wanted, words.data());
      for (size_t i = 0; i < 64 * words_for(count); ++i) {
        const bool set = (words[i / 64] >> (i % 64) & 1U) != 0;
        ASSERT_EQ(set, i < count && values[i] == wanted) << i << " of " << count;
      }
      EXPECT_EQ(words.back(), 7U) << "nothing is written past the end";
    }
  }
}

TEST_P(BitRanks, BitsOfSymbols) {
  std::mt19937 random(3);
  for (size_t count = 0; count < 300; ++count) {
    std::vector<uint8_t> values(count);
    for (uint8_t& value : values) value = static_cast<uint8_t>(random() % 2 * (random() % 128));
    std::vector<uint64_t> large(words_for(count)), nonzero(words_for(count));
    sixteen_bits(values, large.data());
    nonzero_bits(values, nonzero.data());
    std::vector<size_t> found, expected;
    each_bit(large, [&](size_t i) { found.push_back(i); });
    each_bit(nonzero, [&](size_t i) { found.push_back(i); });
    for (size_t i = 0; i < count; ++i) {
      if (values[i] >= 16) expected.push_back(i);
    }
    for (size_t i = 0; i < count; ++i) {
      if (values[i] > 0) expected.push_back(i);
    }
    ASSERT_EQ(found, expected) << count;

    std::vector<uint16_t> counts((nonzero.size() + 1) / 2);
    count_stretches(nonzero, 2, counts.data());
    for (size_t k = 0; k < counts.size(); ++k) {
      const auto begin = values.begin() + static_cast<ptrdiff_t>(128 * k);
      const auto end = values.begin() + static_cast<ptrdiff_t>(std::min(count, 128 * k + 128));
      EXPECT_EQ(counts[k], end - begin - std::count(begin, end, 0));
    }
  }
}

// gaps_of() against counting one by one, and place() against gaps_of().
TEST_P(BitRanks, GapsThereAndBack) {
  std::mt19937 random(2);
  for (int round = 0; round < 300; ++round) {
    const size_t count = 1 + random() % 2000, density = 1 + random() % 40;
    std::vector<uint64_t> kind(words_for(count)), counted(kind.size(), ~uint64_t{0});
    std::vector<uint32_t> elements, expected;
    uint32_t gap = 0;
    for (size_t i = 0; i < count; ++i) {
      if (random() % 3 == 0) continue;
      kind[i / 64] |= uint64_t{1} << (i % 64);
      if (random() % density != 0) {
        ++gap;
        continue;
      }
      counted[i / 64] &= ~(uint64_t{1} << (i % 64));
      elements.push_back(static_cast<uint32_t>(i));
      expected.push_back(gap);
      gap = 0;
    }
    std::vector<uint32_t> gaps(elements.size()), found(elements.size()), ranks(kind.size());
    gaps_of(kind, counted, elements, ranks, gaps.data());
    EXPECT_EQ(gaps, expected);
    EXPECT_EQ(place(kind, gaps, found.data()), elements.size());
    EXPECT_EQ(found, elements);
    if (gaps.empty()) continue;
    gaps.back() += gap + 1;  // one more than the kind has
    EXPECT_EQ(place(kind, gaps, found.data()), elements.size() - 1);
  }
}

}  // namespace
}  // namespace lathe::codec
