#include "codec/entropy.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "codec/bytes.h"
#include "codec/rans.h"

namespace lathe::codec {
namespace {

constexpr uint8_t kSameTable = 255;  // instead of a table: that of the context before which has one

constexpr std::array<uint32_t, 3> kLaneCounts = {1, kFewLanes, kMostLanes};

// A frequency as a byte: a 4-bit exponent e and a 4-bit mantissa m, (16 + m) 2^e / 16.
uint32_t decode_frequency(uint8_t code) {
  return ((16U + (code & 15U)) << (code >> 4)) >> 4;
}
uint8_t encode_frequency(double frequency) {  // the nearest, at least 1
  if (frequency < 32) frequency = std::max(1.0, std::round(frequency));
  const int exponent = std::ilogb(frequency);
  const auto mantissa = static_cast<int>(std::lround(std::ldexp(frequency, 4 - exponent))) - 16;
  return static_cast<uint8_t>(16 * exponent + mantissa);  // a mantissa of 16 carries into the exponent
}

uint32_t lane_code(uint32_t lanes) {
  return lanes == 1 ? 0 : lanes == kFewLanes ? 1 : 2;
}

// A lane costs about two bytes, and saves time where symbols are many.
uint32_t lanes_for(size_t symbols, double bits, StreamShape shape) {
  if (shape == StreamShape::kFast) return symbols < 4096 ? 1 : kMostLanes;
  return symbols < 16384 ? 1 : bits < 8 * 16384 ? kFewLanes : kMostLanes;
}

}  // namespace

std::span<const std::byte> BitWriter::finish() {
  if (filled_ > 0) put(0, 8 - filled_);
  return std::span(bytes_).first(size_);
}

void BitWriter::grow() {
  constexpr size_t kFirst = 4096;
  bytes_.resize(std::max(kFirst, 2 * bytes_.size()));
}

void BitWriter::clear() {
  size_ = 0;
  pending_ = 0;
  filled_ = 0;
}

void HistogramBuilder::add(std::span<const Pair> pairs) {
  uint32_t* counts = counts_.data();
  size_t i = 0;
  for (; i + kParts <= pairs.size(); i += kParts) {
    for (size_t part = 0; part < kParts; ++part) ++counts[part * kPart + pairs[i + part]];
  }
  for (; i < pairs.size(); ++i) ++counts[pairs[i]];
}

Histogram HistogramBuilder::total() const {
  Histogram sum;
  for (uint32_t pair = 0; pair < kPairs; ++pair) {
    uint32_t& count = sum.count[context_of(static_cast<Pair>(pair))][symbol_in(static_cast<Pair>(pair))];
    for (size_t part = 0; part < kParts; ++part) count += counts_[part * kPart + pair];
  }
  return sum;
}

double n_log_n(uint64_t n) {
  return n < 2 ? 0 : static_cast<double>(n) * std::log2(static_cast<double>(n));
}

double table_bits(const SymbolCounts& counts) {
  uint64_t total = 0;
  int present = 0;
  double bits = 0;
  for (const uint32_t n : counts) {
    if (n == 0) continue;
    total += n;
    bits -= n_log_n(n);
    ++present;
  }
  bits += n_log_n(total);
  return counts[0] == total ? 0 : bits + 8 * present;
}

namespace {

// Neighbouring contexts whose symbols together take no more bytes than apart, one table less included, each count what
// all of them do.
Histogram with_shared_tables(const Histogram& histogram) {
  Histogram shared = histogram;
  constexpr double kTable = 16;  // bits of a table besides its symbols
  double group_bits = 0;
  std::vector<uint32_t> members;
  for (uint32_t c = 0; c < kContexts; ++c) {
    const double bits = table_bits(histogram.count[c]);
    if (bits == 0) continue;
    if (!members.empty()) {
      SymbolCounts sum = shared.count[members.back()];
      for (uint32_t s = 0; s < kSymbols; ++s) sum[s] += histogram.count[c][s];
      const double together = table_bits(sum);
      if (together <= group_bits + bits + kTable) {
        members.push_back(c);
        for (const uint32_t member : members) shared.count[member] = sum;
        group_bits = together;
        continue;
      }
    }
    members = {c};
    group_bits = bits;
  }
  return shared;
}

}  // namespace

SymbolModel SymbolModel::fit(const Histogram& counted, StreamShape shape) {
  const Histogram histogram = shape == StreamShape::kSmall ? with_shared_tables(counted) : counted;
  SymbolModel model;
  uint64_t total = 0, main_total = 0;
  std::array<uint64_t, kContexts> sums{};
  for (uint32_t c = 0; c < kContexts; ++c) {
    const auto& counts = histogram.count[c];
    model.main_[c] = static_cast<uint8_t>(std::max_element(counts.begin(), counts.end()) - counts.begin());
    for (const uint32_t n : counts) sums[c] += n;
    total += sums[c];
    main_total += counts[model.main_[c]];
  }
  constexpr uint64_t kRare = 32;  // where others than the main symbol are rarer, 2^12 is too coarse for them
  const bool precise = shape == StreamShape::kSmall && kRare * (total - main_total) < total;
  model.precision_ = precise ? kSparsePrecision : kDensePrecision;
  const uint32_t all = 1U << model.precision_;
  for (uint32_t c = 0; c < kContexts; ++c) {
    auto& frequencies = model.frequency_[c];
    uint32_t others = 0;
    for (uint32_t s = 0; s < kSymbols; ++s) {
      const uint32_t n = histogram.count[c][s];
      if (n == 0 || s == model.main_[c]) continue;
      frequencies[s] = decode_frequency(encode_frequency(static_cast<double>(n) * all / static_cast<double>(sums[c])));
      others += frequencies[s];
    }
    while (others >= all) {  // many rare symbols, each rounded up to 1; or a flat distribution, rounded up
      auto largest = std::max_element(frequencies.begin(), frequencies.end());
      const uint32_t less = decode_frequency(encode_frequency(0.9 * *largest));
      others -= *largest - less;
      *largest = less;
    }
    frequencies[model.main_[c]] = all - others;
  }
  return model;
}

double SymbolModel::cost(const Histogram& histogram) const {
  double bits = 0;
  for (uint32_t c = 0; c < kContexts; ++c) {
    for (uint32_t s = 0; s < kSymbols; ++s) {
      if (const uint32_t n = histogram.count[c][s]; n > 0) bits += n * (precision_ - std::log2(frequency_[c][s]));
    }
  }
  return bits;
}

void SymbolModel::write(std::vector<std::byte>& out) const {
  uint32_t present = 0;
  for (uint32_t c = 0; c < kContexts; ++c) present |= static_cast<uint32_t>(!trivial(c)) << c;
  append_varint(out, present);
  const SymbolCounts* before = nullptr;
  for (uint32_t c = 0; c < kContexts; ++c) {
    if ((present >> c & 1U) == 0) continue;
    const auto& frequencies = frequency_[c];
    if (before != nullptr && frequencies == *before) {
      append(out, kSameTable);
      continue;
    }
    before = &frequencies;
    std::vector<std::byte> runs;
    uint32_t count = 0, last_first = 0, last_size = 0;
    for (uint32_t s = 0; s < kSymbols; ++s) {
      if (frequencies[s] == 0) continue;
      last_first = s;
      while (s < kSymbols && frequencies[s] > 0) ++s;
      last_size = s - last_first;
      append(runs, static_cast<uint8_t>(last_first));
      append(runs, static_cast<uint8_t>(last_size));
      for (uint32_t k = last_first; k < s; ++k) {
        if (k != main_[c]) append(runs, encode_frequency(frequencies[k]));
      }
      ++count;
    }
    if (count == 1 && last_first == 0 && main_[c] == 0) {  // nearly all contexts
      append(out, static_cast<uint8_t>(last_size));
      append_bytes(out, std::span(runs).subspan(2));
    } else {
      append(out, uint8_t{0});
      append(out, main_[c]);
      append(out, static_cast<uint8_t>(count));
      append_bytes(out, runs);
    }
  }
}

namespace {

// The tables' reader: frequencies of one run of symbols, the main one's left 0.
Status take_run(std::span<const std::byte>& in, uint32_t first, uint32_t count, uint32_t main, uint32_t symbols,
                std::array<uint32_t, kSymbols>& frequencies) {
  if (count == 0 || first + count > symbols) return corruption("a symbol stream has impossible symbols");
  for (uint32_t symbol = first; symbol < first + count; ++symbol) {
    if (symbol != main) frequencies[symbol] = decode_frequency(LATHE_TRY(take<uint8_t>(in)));
  }
  return {};
}

}  // namespace

Result<SymbolModel> SymbolModel::read(std::span<const std::byte>& in, int precision, uint32_t symbols) {
  SymbolModel model;
  model.precision_ = precision;
  const uint64_t present = LATHE_TRY(take_varint(in));
  const uint32_t all = 1U << precision;
  const SymbolCounts* before = nullptr;
  for (uint32_t c = 0; c < kContexts; ++c) {
    auto& frequencies = model.frequency_[c];
    frequencies[0] = all;
    if ((present >> c & 1U) == 0) continue;
    frequencies[0] = 0;
    uint32_t main = 0;
    const uint32_t count = LATHE_TRY(take<uint8_t>(in));
    if (count == kSameTable && before != nullptr) {
      frequencies = *before;
      continue;
    }
    before = &frequencies;
    if (count > 0) {
      LATHE_TRY(take_run(in, 0, count, main, symbols, frequencies));
    } else {
      main = LATHE_TRY(take<uint8_t>(in));
      const auto runs = LATHE_TRY(take<uint8_t>(in));
      if (main >= symbols) return corruption("a symbol stream has an impossible main symbol");
      for (uint32_t run = 0, next = 0; run < runs; ++run) {
        const uint32_t first = LATHE_TRY(take<uint8_t>(in)), size = LATHE_TRY(take<uint8_t>(in));
        if (first < next) return corruption("a symbol stream has impossible symbols");
        LATHE_TRY(take_run(in, first, size, main, symbols, frequencies));
        next = first + size;
      }
    }
    const uint32_t sum = std::accumulate(frequencies.begin(), frequencies.end(), 0U);
    if (sum >= all) return corruption("a symbol stream's frequencies leave nothing for the main symbol");
    frequencies[main] = all - sum;
  }
  return model;
}

void SymbolEncoder::encode(std::span<const Pair> pairs, const Histogram& histogram, std::span<const std::byte> extra,
                           StreamShape shape, std::vector<std::byte>& out) {
  const SymbolModel model = SymbolModel::fit(histogram, shape);
  const uint32_t lanes = lanes_for(pairs.size(), model.cost(histogram), shape);
  if (words_.size() < pairs.size() + kWordsBefore) words_.resize(pairs.size() + kWordsBefore);
  uint16_t* const end = words_.data() + words_.size();
  LaneStates states;
  const uint16_t* const words = rans_encode(model, pairs, lanes, states, end);

  append(out, static_cast<uint8_t>(lane_code(lanes) << 4 | static_cast<uint32_t>(model.precision())));
  model.write(out);
  append_varint(out, static_cast<uint64_t>(end - words));
  append_bytes(out, std::as_bytes(std::span(states).first(lanes)));
  append_bytes(out, std::as_bytes(std::span(words, end)));
  append_varint(out, extra.size());
  append_bytes(out, extra);
}

Result<std::span<const std::byte>> SymbolDecoder::decode(std::span<const std::byte>& in, uint32_t alphabet,
                                                         std::span<const uint8_t> contexts,
                                                         std::span<uint8_t> symbols) {
  const auto form = LATHE_TRY(take<uint8_t>(in));
  const int precision = form & 15;
  if ((precision != kSparsePrecision && precision != kDensePrecision) || form >> 4 >= std::ssize(kLaneCounts))
    return corruption("a symbol stream has an unknown form");
  const uint32_t lanes = kLaneCounts[form >> 4];
  const SymbolModel model = LATHE_TRY(SymbolModel::read(in, precision, alphabet));
  const uint64_t count = LATHE_TRY(take_varint(in));
  LaneStates states{};
  for (uint32_t lane = 0; lane < lanes; ++lane) {
    states[lane] = LATHE_TRY(take<uint32_t>(in));
    if (states[lane] < kLowestState) return corruption("a symbol stream begins with an impossible state");
  }
  const auto words = LATHE_TRY(take_bytes(in, 2 * count));
  if (!rans_decode(model, lanes, states, words, contexts, symbols, slots_))
    return corruption("a symbol stream does not end where it should");
  const uint64_t extra = LATHE_TRY(take_varint(in));
  return take_bytes(in, extra);
}

}  // namespace lathe::codec
