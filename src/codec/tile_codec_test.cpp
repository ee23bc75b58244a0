// The codec: exact for every bit pattern in both directions, close to the entropy where that matters, never much larger
// than the tile, and safe with payloads that lie.
#include "codec/tile_codec.h"

#include <gtest/gtest.h>

#include <map>

#include "base/hash.h"
#include "codec/test_weights.h"
#include "codec/ulp.h"
#include "codec/wide.h"

namespace lathe::codec {
namespace {

template <class Value>
Bytes bytes_of(const std::vector<Value>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

struct Coded {
  TileMode mode = TileMode::kUnchanged;
  Bytes payload;
};

std::vector<TilePart> whole(ElementType type, const Bytes& tile) {
  return {{.type = type, .offset = 0, .size = tile.size()}};
}

// Encodes, and checks that both directions give back the other side; with the loops for AVX-512, if there is one, or
// with those for other CPUs.
Coded code(const std::vector<TilePart>& parts, const Bytes& before, const Bytes& after, bool wide) {
  wide_is_off = !wide;
  TileCodec codec;
  Coded coded;
  coded.mode = codec.encode(parts, before, after, coded.payload);
  EXPECT_LE(coded.payload.size(), before.size() + parts.size());
  Bytes out(before.size());
  const Status forward = codec.decode(parts, Direction::kForward, before, coded.payload, out);
  EXPECT_TRUE(forward.ok()) << forward.error().message;
  EXPECT_EQ(out, after);
  out.assign(out.size(), std::byte{0});
  const Status backward = codec.decode(parts, Direction::kBackward, after, coded.payload, out);
  EXPECT_TRUE(backward.ok()) << backward.error().message;
  EXPECT_EQ(out, before);
  wide_is_off = false;
  return coded;
}

// Both ways, which must not differ in a byte.
Coded code(const std::vector<TilePart>& parts, const Bytes& before, const Bytes& after) {
  const Coded coded = code(parts, before, after, true), elsewhere = code(parts, before, after, false);
  EXPECT_EQ(coded.mode, elsewhere.mode);
  EXPECT_EQ(coded.payload, elsewhere.payload);
  return coded;
}

Coded code(ElementType type, const Bytes& before, const Bytes& after) {
  return code(whole(type, before), before, after);
}

Bytes random_bytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

TEST(Ordinal, IsTheTotalOrderAndOneToOne) {
  const auto ordinal = [](uint16_t bits) { return BFloat16::ordinal(bits); };
  EXPECT_EQ(ordinal(0x0000) - ordinal(0x8000), 1);  // -0 comes right before +0
  EXPECT_EQ(ordinal(0x3F80) - ordinal(0x3F7F), 1);  // across a power of two
  EXPECT_LT(ordinal(0xFF80), ordinal(0xFF7F));      // -inf, -max
  EXPECT_LT(ordinal(0x7F80), ordinal(0x7FC0));      // inf, NaN
  for (uint32_t bits = 0; bits < 65536; ++bits)
    ASSERT_EQ(BFloat16::from_ordinal(BFloat16::ordinal(static_cast<uint16_t>(bits))), bits);
  for (const uint32_t bits : {0U, 1U, 0x7F800000U, 0x80000000U, 0x80000001U, 0xFFFFFFFFU, 0x3F800000U})
    ASSERT_EQ(Float32::from_ordinal(Float32::ordinal(bits)), bits);
}

TEST(TileCodec, EveryPatternFromAndToInterestingOnes) {
  std::vector<uint16_t> every(65536);
  for (size_t i = 0; i < every.size(); ++i) every[i] = static_cast<uint16_t>(i);
  for (const ElementType type : {ElementType::kBFloat16, ElementType::kFloat16, ElementType::kWord16}) {
    // Zeros, subnormals, powers of two and their neighbours, the largest numbers, infinities, NaNs with payloads.
    for (const uint16_t pattern :
         {0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x0080, 0x03FF, 0x0400, 0x3F7F, 0x3F80, 0x3F81,
          0xBF80, 0x7BFF, 0x7C00, 0x7C01, 0x7F7F, 0x7F80, 0x7F81, 0x7FC0, 0xFF80, 0xFFC1, 0xFFFF}) {
      const std::vector<uint16_t> one(65536, pattern);
      code(type, bytes_of(one), bytes_of(every));
      code(type, bytes_of(every), bytes_of(one));
    }
  }
}

TEST(TileCodec, EveryTypeWithSmallAndWithAnySteps) {
  std::mt19937_64 random(5);
  for (const ElementType type : {ElementType::kBytes, ElementType::kWord16, ElementType::kWord32,
                                 ElementType::kBFloat16, ElementType::kFloat16, ElementType::kFloat32}) {
    for (const uint32_t range : {0U, 1U, 3U, 40U, 300U, 100000U, 0xFFFFFFFFU}) {
      Bytes before = random_bytes(40000, range), after = before;
      const size_t size = element_size(type);
      for (size_t i = 0; i < before.size() / size; ++i) {
        uint32_t value = 0;
        std::memcpy(&value, &before[i * size], size);
        value += range == 0 ? 0 : static_cast<uint32_t>(random()) % range - range / 2;
        std::memcpy(&after[i * size], &value, size);
      }
      code(type, before, after);
    }
  }
}

TEST(TileCodec, Float32MovesByManySteps) {
  std::mt19937_64 random(6);
  std::normal_distribution<float> normal;
  std::vector<float> before, after;
  for (int i = 0; i < 100000; ++i) {
    before.push_back(0.02F * normal(random));
    after.push_back(before.back() + 1e-6F * normal(random));
  }
  const Coded coded = code(ElementType::kFloat32, bytes_of(before), bytes_of(after));
  EXPECT_EQ(coded.mode, TileMode::kDense);
  EXPECT_LT(coded.payload.size(), 4 * before.size() / 2);
}

TEST(TileCodec, UnchangedIsOneByte) {
  const Bytes tile = random_bytes(kTileBytes, 1);
  const Coded coded = code(ElementType::kBFloat16, tile, tile);
  EXPECT_EQ(coded.mode, TileMode::kUnchanged);
  EXPECT_EQ(coded.payload.size(), 1U);
}

TEST(TileCodec, FewBlocksAreSparse) {
  const Bytes before = random_bytes(kTileBytes, 2);
  for (const size_t at : {size_t{0}, kTileBytes / 2 + 77, kTileBytes - 1}) {
    Bytes after = before;
    after[at] ^= std::byte{1};
    const Coded coded = code(ElementType::kBFloat16, before, after);
    EXPECT_EQ(coded.mode, TileMode::kSparse);
    EXPECT_LT(coded.payload.size(), 80U);
  }
}

TEST(TileCodec, WhatCannotBeCompressedIsRaw) {
  for (const size_t size : {size_t{1}, size_t{2}, size_t{100}, size_t{4096}, size_t{kTileBytes}}) {
    const Coded coded = code(ElementType::kBytes, random_bytes(size, 3), random_bytes(size, 4));
    EXPECT_EQ(coded.mode, TileMode::kRaw) << size;
    EXPECT_EQ(coded.payload.size(), size + 1);
  }
}

// Bits of the steps, given the old exponents.
double conditional_entropy(const TrainedWeights& weights) {
  std::map<int, std::map<uint16_t, double>> counts;
  for (size_t i = 0; i < weights.before.size(); ++i) {
    const auto step = static_cast<uint16_t>(BFloat16::ordinal(weights.after[i]) - BFloat16::ordinal(weights.before[i]));
    ++counts[BFloat16::magnitude(weights.before[i]) >> BFloat16::kMantissa][step];
  }
  double bits = 0;
  for (const auto& [exponent, steps] : counts) {
    double total = 0;
    for (const auto& [step, n] : steps) total += n;
    for (const auto& [step, n] : steps) bits += n * std::log2(total / n);
  }
  return bits;
}

TEST(TileCodec, StaysWithinFivePercentOfTheConditionalEntropy) {
  // From one change in a hundred weights to all of them by many steps.
  for (const double step : {2e-6, 1e-5, 1e-4, 3e-4}) {
    const TrainedWeights weights(kTileBytes / 2, 0.02, step, 7);
    const Coded coded = code(ElementType::kBFloat16, bytes_of(weights.before), bytes_of(weights.after));
    const double bound = conditional_entropy(weights) / 8;
    EXPECT_LT(static_cast<double>(coded.payload.size()), 1.05 * bound) << "steps of " << step;
  }
}

// Elements that come from far, in tiles of few changes (lists) and of many (symbols), cost what it takes to list them:
// not a question to each element that lies as far from an edge as they do.
TEST(TileCodec, FewThatCrossFromFarCostLittle) {
  for (const auto& [step, mode] : {std::pair(5e-7, TileMode::kSparse), std::pair(1e-4, TileMode::kDense)}) {
    TrainedWeights weights(kTileBytes / 2, 0.02, step, 14);
    const Bytes before = bytes_of(weights.before);
    const size_t without = code(ElementType::kBFloat16, before, bytes_of(weights.after)).payload.size();
    constexpr size_t kFar = 100;
    for (size_t i = 0; i < kFar; ++i) {
      const size_t at = (i * 7919 + 3) % weights.after.size();
      weights.after[at] = static_cast<uint16_t>((weights.before[at] ^ (i % 2 == 0 ? 0x0180 : 0x0080)) | 0x0040);
    }
    const Coded coded = code(ElementType::kBFloat16, before, bytes_of(weights.after));
    EXPECT_EQ(coded.mode, mode);
    EXPECT_LT(coded.payload.size(), without + 10 * kFar) << "steps of " << step;
  }
}

// How often symbols occur is sampled. What no sample has seen is coded as well: a step, and an exponent.
TEST(TileCodec, WhatTheSampleHasNotSeenComesBack) {
  std::mt19937 random(15);
  std::vector<uint16_t> before(kTileBytes / 2), after(before.size());
  for (size_t i = 0; i < before.size(); ++i) {
    before[i] = static_cast<uint16_t>(0x3D00 + random() % 0x80);  // one exponent
    after[i] = static_cast<uint16_t>(before[i] + random() % 2);
  }
  // At places that are in no sample: those are the first 512 elements of every 8192. First at one, at last at many.
  for (size_t at = 1100; at < 20'000; at += 1000) {
    after[at] = static_cast<uint16_t>(before[at] + 7);
    before[at + 1] = static_cast<uint16_t>(0x3C00 + at % 0x80);
    after[at + 1] = static_cast<uint16_t>(before[at + 1] + 1);
    EXPECT_EQ(code(ElementType::kBFloat16, bytes_of(before), bytes_of(after)).mode, TileMode::kDense);
  }
}

TEST(TileCodec, PartsOfSeveralTypesAtOddPlaces) {
  const TrainedWeights weights(3000, 0.02, 1e-4, 8);
  Bytes before = random_bytes(3, 9), after = random_bytes(3, 10);
  std::vector<TilePart> parts = {{.type = ElementType::kBytes, .offset = 0, .size = 3}};
  for (const ElementType type :
       {ElementType::kBFloat16, ElementType::kFloat32, ElementType::kWord16, ElementType::kBytes}) {
    parts.push_back({.type = type, .offset = before.size(), .size = 6000});
    const Bytes from = bytes_of(weights.before), to = bytes_of(weights.after);
    before.insert(before.end(), from.begin(), from.end());
    after.insert(after.end(), to.begin(), to.end());
  }
  code(parts, before, after);
}

TEST(TileCodec, RandomTilesOfEveryMode) {
  std::mt19937_64 random(11);
  std::map<TileMode, int> seen;
  for (int round = 0; round < 300; ++round) {
    const auto type = static_cast<ElementType>(random() % 6);
    const size_t count = 1 + random() % 5000;
    const TrainedWeights weights(2 * count, 0.02, std::pow(10.0, -7.0 + static_cast<double>(random() % 6)), random());
    Bytes before = bytes_of(weights.before), after = bytes_of(weights.after);
    if (random() % 2 == 0) {  // leave stretches alone
      for (size_t at = 0; at < before.size();) {
        const size_t n = std::min<size_t>(before.size() - at, random() % 4000);
        if (random() % 2 == 0)
          std::copy_n(before.begin() + static_cast<ptrdiff_t>(at), n, after.begin() + static_cast<ptrdiff_t>(at));
        at += n + 1;
      }
    }
    if (random() % 8 == 0) after = random_bytes(after.size(), random());
    ++seen[code(type, before, after).mode];
  }
  EXPECT_GT(seen[TileMode::kSparse], 10);
  EXPECT_GT(seen[TileMode::kDense], 10);
  EXPECT_GT(seen[TileMode::kRaw], 10);
}

// A damaged payload is normally found by its checksum. Without it, decoding must still stay within its memory (this
// runs under sanitizers) and must notice when the streams do not add up.
TEST(TileCodec, DamagedPayloadsNeverEscape) {
  const TrainedWeights weights(6000, 0.02, 1e-4, 12);
  const Bytes before = bytes_of(weights.before), after = bytes_of(weights.after);
  const auto parts = whole(ElementType::kBFloat16, before);
  const Coded coded = code(parts, before, after);
  TileCodec codec;
  Bytes out(before.size());
  for (size_t size = 0; size < coded.payload.size(); ++size) {
    const std::span cut(coded.payload.data(), size);
    ASSERT_FALSE(codec.decode(parts, Direction::kForward, before, cut, out).ok()) << size;
    ASSERT_FALSE(codec.decode(parts, Direction::kBackward, after, cut, out).ok()) << size;
  }
  std::mt19937_64 random(13);
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    Bytes damaged = coded.payload;
    for (uint64_t n = 1 + random() % 3; n > 0; --n)
      damaged[random() % std::min<size_t>(damaged.size(), random() % 2 ? 200 : ~0U)] = static_cast<std::byte>(random());
    refused += !codec.decode(parts, round % 2 ? Direction::kForward : Direction::kBackward, before, damaged, out).ok();
  }
  EXPECT_GT(refused, 3000);
}

}  // namespace
}  // namespace lathe::codec
