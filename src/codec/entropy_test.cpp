// Symbol streams: any numbers come back, at their entropy, whatever the distribution and the number of lanes.
#include "codec/entropy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "codec/wide.h"

namespace lathe::codec {
namespace {

struct Stream {
  std::vector<uint8_t> contexts, symbols;

  Stream(size_t count, const std::function<std::pair<uint32_t, uint32_t>()>& draw) {
    for (size_t i = 0; i < count; ++i) {
      const auto [context, symbol] = draw();
      contexts.push_back(static_cast<uint8_t>(context));
      symbols.push_back(static_cast<uint8_t>(symbol));
    }
  }

  double entropy_bytes() const {
    std::vector<double> counts(kContexts * kSymbols), totals(kContexts);
    for (size_t i = 0; i < symbols.size(); ++i) {
      ++counts[contexts[i] * kSymbols + symbols[i]];
      ++totals[contexts[i]];
    }
    double bits = 0;
    for (size_t k = 0; k < counts.size(); ++k)
      bits += counts[k] > 0 ? counts[k] * std::log2(totals[k / kSymbols] / counts[k]) : 0;
    return bits / 8;
  }

  // Checks that it comes back, from what a CPU without AVX-512 wrote too, and returns its size.
  size_t code(StreamShape shape = StreamShape::kSmall) const {
    wide_is_off = true;
    const std::vector<std::byte> elsewhere = code_here(shape);
    wide_is_off = false;
    const std::vector<std::byte> here = code_here(shape);
    EXPECT_EQ(here, elsewhere);
    return here.size();
  }

  std::vector<std::byte> code_here(StreamShape shape) const {
    const std::byte extra[] = {std::byte{1}, std::byte{2}};
    HistogramBuilder histogram;
    std::vector<Pair> pairs;
    for (size_t i = 0; i < symbols.size(); ++i) pairs.push_back(pair_of(contexts[i], symbols[i]));
    histogram.add(pairs);
    std::vector<std::byte> out;
    SymbolEncoder().encode(pairs, histogram.total(), extra, shape, out);
    std::span<const std::byte> in(out);
    std::vector<uint8_t> back(symbols.size());
    const auto rest = SymbolDecoder().decode(in, kSymbols, contexts, back);
    EXPECT_TRUE(rest.ok()) << rest.error().message;
    EXPECT_EQ(back, symbols);
    EXPECT_EQ(rest->size(), 2U);
    EXPECT_TRUE(in.empty());
    return out;
  }
};

TEST(Symbols, NumbersAndBack) {
  for (uint32_t power = 0; power < 32; ++power) {
    for (const uint32_t number :
         {(1U << power) - 1, 1U << power, (1U << power) + 1, (1U << power) | (1U << power) >> 1}) {
      const uint32_t symbol = symbol_of(number), bits = extra_bits(symbol);
      ASSERT_LT(symbol, kSymbols);
      ASSERT_EQ(number_of(symbol, number & static_cast<uint32_t>((uint64_t{1} << bits) - 1)), number);
    }
  }
  EXPECT_EQ(symbol_of(~0U), kSymbols - 1);
}

TEST(Symbols, OfEveryDistribution) {
  std::mt19937 random(1);
  const auto of = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
  for (const size_t count : {0, 1, 5, 100, 20'000, 200'000}) {
    for (const StreamShape shape : {StreamShape::kSmall, StreamShape::kFast}) {
      Stream(count, [] { return std::pair(0U, 0U); }).code(shape);
      Stream(count, [] { return std::pair(31U, 127U); }).code(shape);
      Stream(count, [&] { return std::pair(of(32), of(128)); }).code(shape);
      Stream(count, [&] { return std::pair(of(2), of(1000) == 0 ? of(128) : 0); }).code(shape);
      Stream(count, [&] { return std::pair(3U, of(3) == 0 ? 7 : 126 + of(2)); }).code(shape);
    }
  }
}

TEST(Symbols, AreCodedAtTheirEntropy) {
  std::mt19937 random(2);
  std::exponential_distribution<double> far(1);
  constexpr size_t kCount = 1'000'000;
  for (const double change : {0.002, 0.02, 0.2, 0.9}) {  // rarer in higher contexts
    const Stream stream(kCount, [&] {
      const uint32_t context = static_cast<uint32_t>(random() % 8);
      const bool changes = static_cast<double>(random()) / 4294967296.0 < change / (1U << context);
      return std::pair(context, changes ? std::min(127U, 1 + static_cast<uint32_t>(8 * change * far(random))) : 0);
    });
    EXPECT_LT(static_cast<double>(stream.code()), 1.01 * stream.entropy_bytes() + 250) << change;
  }
}

TEST(Symbols, OfContextsThatAreAlikeShareATable) {
  std::mt19937 random(4);
  const auto bytes_of = [&](uint32_t contexts) {
    const Stream stream(40'000, [&] {
      return std::pair(static_cast<uint32_t>(random() % contexts), static_cast<uint32_t>(random() % 40));
    });
    return static_cast<double>(stream.code()) - stream.entropy_bytes();
  };
  // A table is forty bytes; another one for each context would be more than a thousand.
  EXPECT_LT(bytes_of(32) - bytes_of(1), 400);
}

TEST(Bits, AreReadAsWritten) {
  std::mt19937 random(3);
  BitWriter writer;
  std::vector<std::pair<uint32_t, uint32_t>> written;
  for (int i = 0; i < 1000; ++i) {
    const auto bits = static_cast<uint32_t>(random() % 33);
    written.emplace_back(static_cast<uint32_t>(random() & ((uint64_t{1} << bits) - 1)), bits);
    writer.put(written.back().first, bits);
  }
  const auto bytes = writer.finish();
  BitReader reader(bytes);
  EXPECT_FALSE(reader.exact());
  for (const auto& [value, bits] : written) ASSERT_EQ(reader.get(bits), value);
  EXPECT_TRUE(reader.exact());
  reader.get(32);
  EXPECT_FALSE(reader.exact());
}

TEST(Bits, HoldNumbersInGammaCode) {
  BitWriter writer;
  const uint32_t numbers[] = {1, 2, 3, 4, 7, 8, 1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF};
  for (const uint32_t number : numbers) writer.put_gamma(number);
  const auto bytes = writer.finish();
  EXPECT_EQ(bytes.size(), (1 + 3 + 3 + 5 + 5 + 7 + 19 + 61 + 63 + 63 + 7) / 8U);
  BitReader reader(bytes);
  for (const uint32_t number : numbers) ASSERT_EQ(reader.get_gamma(), number);
  EXPECT_TRUE(reader.exact());
  EXPECT_EQ(reader.get_gamma(), 0U);  // nothing but zeros past the end
}

}  // namespace
}  // namespace lathe::codec
