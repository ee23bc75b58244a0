#include "codec/rans.h"

#include <algorithm>
#include <cstring>

#include "codec/rans_wide.h"
#include "codec/wide.h"

namespace lathe::codec {
namespace {

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
  if (frequency == 1) {  // 2^64 has no place in a word: the quotient is one too small, which the bias corrects
    entry.reciprocal = ~uint64_t{0};
    entry.bias = start + total - 1;
  } else {
    entry.reciprocal = ~uint64_t{0} / frequency + 1;
  }
  return entry;
}

// One entry per pair that has a frequency: make(start, frequency).
template <class Value, class Make>
std::vector<Value> table_of(const SymbolModel& model, Make&& make) {
  std::vector<Value> table(kPairs);
  for (uint32_t c = 0; c < kContexts; ++c) {
    uint32_t start = 0;
    for (uint32_t s = 0; s < kSymbols; ++s) {
      const uint32_t frequency = model.frequency(c, s);
      if (frequency > 0) table[pair_of(c, s)] = make(start, frequency);
      start += frequency;
    }
  }
  return table;
}

// Codes from the last symbol to the first, since the decoder reads what was coded last first, and so writes words from
// the back.
template <size_t kLanes>
uint16_t* encode_lanes(std::span<const Pair> pairs, const Entry* entries, LaneStates& result, uint16_t* end) {
  std::array<uint32_t, kLanes> states;
  std::copy_n(result.begin(), kLanes, states.begin());
  const auto encode = [&](size_t i, size_t lane) __attribute__((always_inline)) {
    const Entry& entry = entries[pairs[i]];
    uint32_t x = states[lane];
    end[-1] = static_cast<uint16_t>(x);
    const bool sheds = x > entry.limit;
    end -= sheds;
    x >>= sheds ? 16 : 0;
    const auto quotient = static_cast<uint32_t>((static_cast<Product>(x) * entry.reciprocal) >> 64);
    states[lane] = x + entry.bias + quotient * entry.complement;
  };
  size_t i = pairs.size();
  while (i % kLanes != 0) --i, encode(i, i % kLanes);
  while (i > 0) {
    i -= kLanes;
    for (size_t lane = kLanes; lane-- > 0;) encode(i + lane, lane);
  }
  std::copy(states.begin(), states.end(), result.begin());
  return end;
}

// Words of a stream.
class Words {
 public:
  explicit Words(std::span<const std::byte> bytes) : data_(bytes.data()), count_(bytes.size() / 2) {}
  bool has(size_t words) const { return count_ - next_ >= words; }
  // Only if has(1): puts a word below `state` if that is too low.
  [[gnu::always_inline]] uint32_t refill(uint32_t state) {
    uint16_t word;
    std::memcpy(&word, data_ + 2 * next_, 2);
    const bool low = state < kLowestState;
    next_ += low;
    return low ? state << 16 | word : state;
  }
  bool refill_checked(uint32_t& state) {
    if (state >= kLowestState) return true;
    if (!has(1)) return false;
    state = refill(state);
    return true;
  }
  bool at_end() const { return next_ == count_; }

 private:
  const std::byte* data_;
  size_t count_, next_ = 0;
};

// Finds the symbol of a slot through one table of 2^precision entries per context; contexts that have symbol 0 only
// share one.
class SlotTable {
 public:
  SlotTable(const SymbolModel& model, std::vector<uint32_t>& slots) {
    constexpr uint32_t kNone = ~0U;
    uint32_t trivial = kNone, size = 0;
    for (uint32_t c = 0; c < kContexts; ++c) {
      const bool shares = model.trivial(c) && trivial != kNone;
      rows_[c] = shares ? trivial : size;
      if (shares) continue;
      if (model.trivial(c)) trivial = size;
      size += kRow;
      if (slots.size() < size) slots.resize(size);
      fill(model, c, &slots[rows_[c]]);
    }
    slots_ = slots.data();
  }
  [[gnu::always_inline]] uint32_t step(uint32_t state, uint8_t context, uint8_t& symbol) const {
    const uint32_t entry = slots_[rows_[context] + state % kRow];
    symbol = entry & 0x7FU;
    return (entry >> 19) * (state >> kDensePrecision) + ((entry >> 7) & 0xFFFU);
  }
  const uint32_t* slots() const { return slots_; }  // frequency (13 bits), slot within the symbol (12), symbol (7)
  const std::array<uint32_t, kContexts>& rows() const { return rows_; }

 private:
  static constexpr uint32_t kRow = 1U << kDensePrecision;

  static void fill(const SymbolModel& model, uint32_t context, uint32_t* slot) {
    for (uint32_t s = 0; s < kSymbols; ++s) {
      const uint32_t frequency = model.frequency(context, s);
      for (uint32_t offset = 0; offset < frequency; ++offset) slot[offset] = frequency << 19 | offset << 7 | s;
      slot += frequency;
    }
  }

  std::array<uint32_t, kContexts> rows_{};
  const uint32_t* slots_ = nullptr;
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

// False unless the words last and are used up. Rounds of `lanes` symbols are unchecked while there is a word for each.
template <size_t kLanes, class Slots>
bool decode_lanes(const Slots& slots, LaneStates& result, Words words, std::span<const uint8_t> contexts,
                  std::span<uint8_t> symbols) {
  std::array<uint32_t, kLanes> states;
  std::copy_n(result.begin(), kLanes, states.begin());
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
  return words.at_end();
}

template <class Slots>
bool decode_lanes(const Slots& slots, size_t lanes, LaneStates& states, std::span<const std::byte> bytes,
                  std::span<const uint8_t> contexts, std::span<uint8_t> symbols) {
  const Words words(bytes);
  if (lanes == 1) return decode_lanes<1>(slots, states, words, contexts, symbols);
  if (lanes == kFewLanes) return decode_lanes<kFewLanes>(slots, states, words, contexts, symbols);
  return decode_lanes<kMostLanes>(slots, states, words, contexts, symbols);
}

}  // namespace

uint16_t* rans_encode(const SymbolModel& model, std::span<const Pair> pairs, uint32_t lanes, LaneStates& states,
                      uint16_t* end) {
  states.fill(kLowestState);
  const auto entries = [&] {
    return table_of<Entry>(
        model, [&](uint32_t start, uint32_t frequency) { return make_entry(start, frequency, model.precision()); });
  };
  if (lanes == 1) return encode_lanes<1>(pairs, entries().data(), states, end);
  if (lanes == kFewLanes) return encode_lanes<kFewLanes>(pairs, entries().data(), states, end);
  const size_t whole = has_wide() ? pairs.size() / kMostLanes * kMostLanes : 0;
  if (whole < pairs.size()) end = encode_lanes<kMostLanes>(pairs.subspan(whole), entries().data(), states, end);
  if (whole == 0) return end;
  const auto table = table_of<uint32_t>(
      model, [](uint32_t start, uint32_t frequency) { return frequency << kWideFrequencyShift | start; });
  return encode_wide(pairs.first(whole), table.data(), model.precision(), states, end);
}

bool rans_decode(const SymbolModel& model, uint32_t lanes, LaneStates& states, std::span<const std::byte> words,
                 std::span<const uint8_t> contexts, std::span<uint8_t> symbols, std::vector<uint32_t>& slots) {
  bool all = false;
  if (model.precision() == kDensePrecision) {
    const SlotTable table(model, slots);
    size_t done = 0;
    if (lanes == kMostLanes && has_wide())
      done = decode_wide(table.slots(), table.rows(), states, words, contexts.data(), symbols);
    all = decode_lanes(table, lanes, states, words, contexts.subspan(done), symbols.subspan(done));
  } else {
    all = decode_lanes(SlotSearch(model), lanes, states, words, contexts, symbols);
  }
  return all && std::all_of(states.begin(), states.begin() + lanes, [](uint32_t x) { return x == kLowestState; });
}

}  // namespace lathe::codec
