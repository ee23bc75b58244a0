#include "checkpoint/bit_ranks.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace lathe::checkpoint {
namespace {

TEST(BitRanks, EqualBitsOfAnyLength) {
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
      EXPECT_EQ(words.back(), 7U) << "nothing is written behind";
    }
  }
}

// gaps_of() against counting one by one, and place() against gaps_of().
TEST(BitRanks, GapsThereAndBack) {
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
    std::vector<uint32_t> gaps(elements.size()), found(elements.size());
    gaps_of(kind.data(), counted.data(), elements, gaps.data());
    EXPECT_EQ(gaps, expected);
    EXPECT_EQ(place(kind, gaps, found.data()), elements.size());
    EXPECT_EQ(found, elements);
    if (gaps.empty()) continue;
    gaps.back() += gap + 1;  // one more than the kind has
    EXPECT_EQ(place(kind, gaps, found.data()), elements.size() - 1);
  }
}

}  // namespace
}  // namespace lathe::checkpoint
