#include "checkpoint/entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "checkpoint/bytes.h"

namespace lathe::checkpoint {
namespace {

constexpr uint32_t kLowest = 1U << 16;  // states stay in [2^16, 2^32)
constexpr int kSparsePrecision = 15, kDensePrecision = 12;
constexpr uint32_t kFewLanes = 4, kMaxLanes = 32;
constexpr std::array<uint32_t, 3> kLaneCounts = {1, kFewLanes, kMaxLanes};

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

__extension__ using Product = unsigned __int128;

struct Entry {  // of the encoder: state / frequency by one multiplication with the reciprocal, rounded up
  uint64_t reciprocal;
  uint32_t limit;       // a state above it sheds a word first
  uint32_t bias;        // of the state's new value: state + bias + quotient * complement
  uint32_t complement;  // 2^precision - frequency
};

Entry make_entry(uint32_t start, uint32_t frequency, int precision) {
  const uint32_t total = 1U << precision;
  Entry entry{.limit = static_cast<uint32_t>((uint64_t{frequency} << (32 - precision)) - 1),
              .bias = start,
              .complement = total - frequency};
  if (frequency == 1) {  // 2^64 has no place in a word: the quotient comes out one too small, which the bias mends
    entry.reciprocal = ~uint64_t{0};
    entry.bias = start + total - 1;
  } else {
    entry.reciprocal = ~uint64_t{0} / frequency + 1;
  }
  return entry;
}

uint32_t lane_code(uint32_t lanes) {
  return lanes == 1 ? 0 : lanes == kFewLanes ? 1 : 2;
}

uint32_t lanes_for(size_t symbols,
                   double bits) {  // a lane costs about two bytes, and saves time where symbols are many
  return symbols < 16384 ? 1 : bits < 8 * 32768 ? kFewLanes : kMaxLanes;
}

// The encoder's tables: one entry per context and symbol.
std::vector<Entry> make_entries(const SymbolModel& model) {
  std::vector<Entry> entries(size_t{kContexts} * kSymbols);
  for (uint32_t c = 0; c < kContexts; ++c) {
    uint32_t start = 0;
    for (uint32_t s = 0; s < kSymbols; ++s) {
      const uint32_t frequency = model.frequency(c, s);
      if (frequency > 0) entries[c * kSymbols + s] = make_entry(start, frequency, model.precision());
      start += frequency;
    }
  }
  return entries;
}

// Codes from the last symbol to the first, since the decoder reads what was coded last first, and so writes words from
// the back: at most one per symbol, before `end`. Returns where they begin.
template <size_t kLanes>
uint16_t* encode_lanes(std::span<const uint8_t> contexts, std::span<const uint8_t> symbols, const Entry* entries,
                       std::array<uint32_t, kMaxLanes>& result, uint16_t* end) {
  std::array<uint32_t, kLanes> states;
  states.fill(kLowest);
  const auto encode = [&](size_t i, size_t lane) __attribute__((always_inline)) {
    const Entry& entry = entries[size_t{contexts[i]} * kSymbols + symbols[i]];
    uint32_t x = states[lane];
    end[-1] = static_cast<uint16_t>(x);
    const bool sheds = x > entry.limit;
    end -= sheds;
    x >>= sheds ? 16 : 0;
    const auto quotient = static_cast<uint32_t>((static_cast<Product>(x) * entry.reciprocal) >> 64);
    states[lane] = x + entry.bias + quotient * entry.complement;
  };
  size_t i = symbols.size();
  while (i % kLanes != 0) --i, encode(i, i % kLanes);
  while (i > 0) {
    i -= kLanes;
    for (size_t lane = kLanes; lane-- > 0;) encode(i + lane, lane);
  }
  std::copy(states.begin(), states.end(), result.begin());
  return end;
}

// Words of a stream; reads zeros behind the end, which exhausted() tells.
class Words {
 public:
  explicit Words(std::span<const std::byte> bytes) : data_(bytes.data()), count_(bytes.size() / 2) {}
  bool has(size_t words) const { return count_ - next_ >= words; }
  // Only if has(1): puts a word below `state` if that is too low.
  [[gnu::always_inline]] uint32_t refill(uint32_t state) {
    uint16_t word;
    std::memcpy(&word, data_ + 2 * next_, 2);
    const bool low = state < kLowest;
    next_ += low;
    return low ? state << 16 | word : state;
  }
  bool refill_checked(uint32_t& state) {
    if (state >= kLowest) return true;
    if (!has(1)) return false;
    state = refill(state);
    return true;
  }
  bool at_end() const { return next_ == count_; }

 private:
  const std::byte* data_;
  size_t count_, next_ = 0;
};

// Finds the symbol of a slot through one table of 2^precision entries per context.
class SlotTable {
 public:
  explicit SlotTable(const SymbolModel& model) : table_(size_t{kContexts} << kDensePrecision) {
    for (uint32_t c = 0; c < kContexts; ++c) {
      uint32_t* slot = &table_[size_t{c} << kDensePrecision];
      for (uint32_t s = 0; s < kSymbols; ++s) {
        const uint32_t frequency = model.frequency(c, s);
        for (uint32_t offset = 0; offset < frequency; ++offset) *slot++ = frequency << 19 | offset << 7 | s;
      }
    }
  }
  [[gnu::always_inline]] uint32_t step(uint32_t state, uint8_t context, uint8_t& symbol) const {
    const uint32_t entry = table_[size_t{context} << kDensePrecision | state % (1U << kDensePrecision)];
    symbol = entry & 0x7FU;
    return (entry >> 19) * (state >> kDensePrecision) + ((entry >> 7) & 0xFFFU);
  }

 private:
  std::vector<uint32_t> table_;  // frequency (13 bits), slot within the symbol (12), symbol (7)
};

// For tables too large for a core's cache, where nearly all symbols are 0: one comparison finds those.
class SlotSearch {
 public:
  explicit SlotSearch(const SymbolModel& model) : model_(model) {
    for (uint32_t c = 0; c < kContexts; ++c) zero_[c] = model.frequency(c, 0);
  }
  [[gnu::always_inline]] uint32_t step(uint32_t state, uint8_t context, uint8_t& symbol) const {
    const uint32_t slot = state % (1U << kSparsePrecision), zero = zero_[context];
    if (slot >= zero) [[unlikely]]
      return search(state, slot, context, symbol);
    symbol = 0;
    return zero * (state >> kSparsePrecision) + slot;
  }

 private:
  [[gnu::noinline]] uint32_t search(uint32_t state, uint32_t slot, uint8_t context, uint8_t& symbol) const {
    uint32_t s = 0;
    for (uint32_t frequency; slot >= (frequency = model_.frequency(context, s)); ++s) slot -= frequency;
    symbol = static_cast<uint8_t>(s);
    return model_.frequency(context, s) * (state >> kSparsePrecision) + slot;
  }

  const SymbolModel& model_;
  std::array<uint32_t, kContexts> zero_{};
};

// False if the words run out. Rounds of `lanes` symbols are unchecked while there is a word for each.
template <size_t kLanes, class Slots>
bool decode_lanes(const Slots& slots, std::array<uint32_t, kMaxLanes>& result, Words& in,
                  std::span<const uint8_t> contexts, std::span<uint8_t> symbols) {
  std::array<uint32_t, kLanes> states;
  std::copy_n(result.begin(), kLanes, states.begin());
  Words words = in;
  const size_t count = symbols.size();
  size_t i = 0;
  for (; i + kLanes <= count && words.has(kLanes); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      states[lane] = words.refill(slots.step(states[lane], contexts[i + lane], symbols[i + lane]));
    }
  }
  for (; i < count; ++i) {
    uint32_t& state = states[i % kLanes];
    state = slots.step(state, contexts[i], symbols[i]);
    if (!words.refill_checked(state)) return false;
  }
  std::copy(states.begin(), states.end(), result.begin());
  in = words;
  return true;
}

template <class Slots>
bool decode_lanes(const Slots& slots, size_t lanes, std::array<uint32_t, kMaxLanes>& states, Words& words,
                  std::span<const uint8_t> contexts, std::span<uint8_t> symbols) {
  if (lanes == 1) return decode_lanes<1>(slots, states, words, contexts, symbols);
  if (lanes == kFewLanes) return decode_lanes<kFewLanes>(slots, states, words, contexts, symbols);
  return decode_lanes<kMaxLanes>(slots, states, words, contexts, symbols);
}

}  // namespace

std::span<const std::byte> BitWriter::finish() {
  for (; filled_ > 0; filled_ -= std::min(filled_, 8U), pending_ >>= 8) append(bytes_, static_cast<uint8_t>(pending_));
  return bytes_;
}

void BitWriter::flush_word() {
  append(bytes_, static_cast<uint32_t>(pending_));
  pending_ >>= 32;
  filled_ -= 32;
}

void BitWriter::clear() {
  bytes_.clear();
  pending_ = 0;
  filled_ = 0;
}

void BitReader::refill() {
  if (next_ + sizeof(uint32_t) <= bytes_.size()) {
    uint32_t word;
    std::memcpy(&word, &bytes_[next_], sizeof word);
    pending_ |= uint64_t{word} << filled_;
    next_ += sizeof word;
    filled_ += 32;
    return;
  }
  for (; filled_ <= 32; filled_ += 8, ++next_)
    pending_ |= (next_ < bytes_.size() ? std::to_integer<uint64_t>(bytes_[next_]) : 0) << filled_;
}

void HistogramBuilder::add(const uint8_t* contexts, const uint8_t* symbols, size_t count) {
  size_t i = 0;
  for (; i + kParts <= count; i += kParts) {
    for (size_t part = 0; part < kParts; ++part) ++parts_[part].count[contexts[i + part]][symbols[i + part]];
  }
  for (; i < count; ++i) ++parts_[0].count[contexts[i]][symbols[i]];
}

Histogram HistogramBuilder::total() const {
  Histogram sum;
  for (const Histogram& part : parts_) {
    for (uint32_t c = 0; c < kContexts; ++c) {
      for (uint32_t s = 0; s < kSymbols; ++s) sum.count[c][s] += part.count[c][s];
    }
  }
  return sum;
}

Histogram Histogram::merged(uint32_t first) const {
  Histogram out;
  for (uint32_t c = 0; c < kContexts; ++c) {
    for (uint32_t s = 0; s < kSymbols; ++s) out.count[c - std::min(c, first)][s] += count[c][s];
  }
  return out;
}

SymbolModel SymbolModel::fit(const Histogram& histogram) {
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
  model.precision_ = 8 * (total - main_total) < total ? kSparsePrecision : kDensePrecision;
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

bool SymbolModel::trivial(uint32_t context) const {
  return frequency_[context][0] == 1U << precision_;
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
  for (uint32_t c = 0; c < kContexts; ++c) {
    if ((present >> c & 1U) == 0) continue;
    const auto& frequencies = frequency_[c];
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
  for (uint32_t c = 0; c < kContexts; ++c) {
    auto& frequencies = model.frequency_[c];
    frequencies[0] = all;
    if ((present >> c & 1U) == 0) continue;
    frequencies[0] = 0;
    uint32_t main = 0;
    if (const uint32_t count = LATHE_TRY(take<uint8_t>(in)); count > 0) {
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

void SymbolEncoder::encode(std::span<const uint8_t> contexts, std::span<const uint8_t> symbols,
                           const Histogram& histogram, std::span<const std::byte> extra, std::vector<std::byte>& out) {
  const SymbolModel model = SymbolModel::fit(histogram);
  const uint32_t lanes = lanes_for(symbols.size(), model.cost(histogram));
  const std::vector<Entry> entries = make_entries(model);
  words_.resize(symbols.size() + 1);
  uint16_t* const end = words_.data() + words_.size();
  std::array<uint32_t, kMaxLanes> states;
  const auto encode = lanes == 1           ? encode_lanes<1>
                      : lanes == kFewLanes ? encode_lanes<kFewLanes>
                                           : encode_lanes<kMaxLanes>;
  const uint16_t* const words = encode(contexts, symbols, entries.data(), states, end);

  append(out, static_cast<uint8_t>(lane_code(lanes) << 4 | static_cast<uint32_t>(model.precision())));
  model.write(out);
  append_varint(out, static_cast<uint64_t>(end - words));
  append_bytes(out, std::as_bytes(std::span(states).first(lanes)));
  append_bytes(out, std::as_bytes(std::span(words, end)));
  append_varint(out, extra.size());
  append_bytes(out, extra);
}

Result<std::span<const std::byte>> decode_symbols(std::span<const std::byte>& in, uint32_t alphabet,
                                                  std::span<const uint8_t> contexts, std::span<uint8_t> symbols) {
  const auto form = LATHE_TRY(take<uint8_t>(in));
  const int precision = form & 15;
  if ((precision != kSparsePrecision && precision != kDensePrecision) || form >> 4 >= std::ssize(kLaneCounts))
    return corruption("a symbol stream has an unknown form");
  const uint32_t lanes = kLaneCounts[form >> 4];
  const SymbolModel model = LATHE_TRY(SymbolModel::read(in, precision, alphabet));
  const uint64_t count = LATHE_TRY(take_varint(in));
  std::array<uint32_t, kMaxLanes> states{};
  for (uint32_t lane = 0; lane < lanes; ++lane) {
    states[lane] = LATHE_TRY(take<uint32_t>(in));
    if (states[lane] < kLowest) return corruption("a symbol stream begins with an impossible state");
  }
  Words words(LATHE_TRY(take_bytes(in, 2 * count)));
  const bool enough = model.precision() == kDensePrecision
                          ? decode_lanes(SlotTable(model), lanes, states, words, contexts, symbols)
                          : decode_lanes(SlotSearch(model), lanes, states, words, contexts, symbols);
  if (!enough) return corruption("a symbol stream is truncated");
  if (!words.at_end() ||
      std::any_of(states.begin(), states.begin() + lanes, [](uint32_t state) { return state != kLowest; }))
    return corruption("a symbol stream does not end where it should");
  const uint64_t extra = LATHE_TRY(take_varint(in));
  return take_bytes(in, extra);
}

}  // namespace lathe::checkpoint
