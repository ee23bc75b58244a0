#include "checkpoint/changes.h"

#include <algorithm>
#include <cmath>

#include "checkpoint/bytes.h"

namespace lathe::checkpoint {
namespace {

// Gaps of a list are close to geometric, so one byte, its scale, says nearly all about them: floor(2 log2(mean + 1)).
// They are divided by a power of two that brings the mean to 4 .. 8; the remainders are random bits, and the quotients
// of all lists share few tables.
constexpr uint32_t kMaxScale = 63;
uint32_t remainder_bits(uint32_t scale) {
  return scale < 4 ? 0 : (scale - 4) / 2;
}
uint8_t gap_context(uint32_t scale) {
  return static_cast<uint8_t>(scale < 4 ? scale : 4 + scale % 2);
}
constexpr uint32_t kGapAlphabet = kSymbols;

// Steps of elements that cross are as wide as those of the smallest numbers; not worth a table of their own.
uint8_t number_context(uint32_t list, uint32_t contexts) {
  return static_cast<uint8_t>(list == contexts ? 0 : list);
}

struct List {
  std::vector<uint32_t> gaps, numbers;

  uint32_t scale() const {
    double sum = 0;
    for (const uint32_t gap : gaps) sum += gap;
    const double mean = gaps.empty() ? 0 : sum / static_cast<double>(gaps.size());
    return static_cast<uint32_t>(2 * std::log2(mean + 1));
  }
};

// How many elements of each context there were. Four counters in turn, so that neighbours of one context do not wait
// for each other's store.
class ContextCounter {
 public:
  void add(const uint8_t* contexts, size_t count) {
    size_t i = 0;
    for (; i + 4 <= count; i += 4) {
      ++counts_[0][contexts[i]];
      ++counts_[1][contexts[i + 1]];
      ++counts_[2][contexts[i + 2]];
      ++counts_[3][contexts[i + 3]];
    }
    for (; i < count; ++i) ++counts_[0][contexts[i]];
  }
  uint32_t of(uint8_t c) const { return counts_[0][c] + counts_[1][c] + counts_[2][c] + counts_[3][c]; }

 private:
  uint32_t counts_[4][kContexts] = {};
};

std::vector<List> make_lists(std::span<const Change> changes, std::span<const uint8_t> before,
                             std::span<const uint8_t> after, uint32_t contexts) {
  std::vector<List> lists(contexts + 1);
  std::vector<uint32_t> next(contexts + 1);  // the place of the next element if it were the list's next change
  ContextCounter counter;
  uint32_t done = 0;
  for (const Change& change : changes) {
    const uint32_t i = change.element;
    counter.add(&before[done], i - done);
    done = i + 1;
    const bool crossed = before[i] != after[i];
    const uint32_t list = crossed ? contexts : before[i], at = crossed ? i : counter.of(before[i]);
    lists[list].gaps.push_back(at - next[list]);
    lists[list].numbers.push_back(change.number);
    next[list] = crossed ? i + 1 : at;
  }
  return lists;
}

// Symbols and extra bits of a stream as it grows.
struct Stream {
  std::vector<uint8_t> contexts, symbols;
  BitWriter extra;

  void put(uint32_t context, uint32_t number) {
    const uint32_t symbol = symbol_of(number), bits = extra_bits(symbol);
    contexts.push_back(static_cast<uint8_t>(context));
    symbols.push_back(static_cast<uint8_t>(symbol));
    extra.put(number & static_cast<uint32_t>((uint64_t{1} << bits) - 1), bits);
  }
  void write(SymbolEncoder& encoder, std::vector<std::byte>& out) {
    HistogramBuilder histogram;
    histogram.add(contexts.data(), symbols.data(), symbols.size());
    encoder.encode(contexts, symbols, histogram.total(), extra.finish(), out);
  }
};

// The lists of a decoder: what is to come of each.
struct Cursor {
  size_t next = 0, end = 0;  // places in gaps and numbers
};

}  // namespace

void encode_changes(std::span<const Change> changes, std::span<const uint8_t> before, std::span<const uint8_t> after,
                    uint32_t contexts, SymbolEncoder& encoder, std::vector<std::byte>& out) {
  const std::vector<List> lists = make_lists(changes, before, after, contexts);
  Stream gaps, numbers;
  for (uint32_t c = 0; c <= contexts; ++c) {
    const List& list = lists[c];
    append_varint(out, list.gaps.size());
    if (list.gaps.empty()) continue;
    const uint32_t scale = list.scale(), bits = remainder_bits(scale);
    append(out, static_cast<uint8_t>(scale));
    for (const uint32_t gap : list.gaps) {
      gaps.put(gap_context(scale), gap >> bits);
      gaps.extra.put(gap & ((1U << bits) - 1), bits);
    }
    for (const uint32_t number : list.numbers) numbers.put(number_context(c, contexts), number - 1);
  }
  gaps.write(encoder, out);
  numbers.write(encoder, out);
}

Status decode_changes(std::span<const std::byte>& in, std::span<const uint8_t> known, uint32_t contexts,
                      uint32_t alphabet, std::vector<Change>& changes) {
  std::vector<Cursor> cursors(contexts + 1);
  std::vector<uint8_t> scales(contexts + 1), gap_contexts, number_contexts;
  for (uint32_t c = 0; c <= contexts; ++c) {
    const uint64_t count = LATHE_TRY(take_varint(in));
    if (count > known.size() - gap_contexts.size()) return corruption("more elements changed than there are");
    if (count > 0) scales[c] = LATHE_TRY(take<uint8_t>(in));
    if (scales[c] > kMaxScale) return corruption("a list of changes has an impossible scale");
    cursors[c] = {.next = gap_contexts.size(), .end = gap_contexts.size() + count};
    gap_contexts.resize(cursors[c].end, gap_context(scales[c]));
    number_contexts.resize(cursors[c].end, number_context(c, contexts));
  }
  std::vector<uint8_t> symbols(gap_contexts.size());
  std::vector<uint32_t> gaps(symbols.size()), numbers(symbols.size());
  BitReader gap_bits(LATHE_TRY(decode_symbols(in, kGapAlphabet, gap_contexts, symbols)));
  for (uint32_t c = 0; c <= contexts; ++c) {
    const uint32_t bits = remainder_bits(scales[c]);
    for (size_t i = cursors[c].next; i < cursors[c].end; ++i) {
      const uint64_t quotient = number_of(symbols[i], gap_bits.get(extra_bits(symbols[i])));
      const uint64_t gap = quotient << bits | gap_bits.get(bits);
      if (gap >= known.size()) return corruption("a change lies behind the last element");
      gaps[i] = static_cast<uint32_t>(gap);
    }
  }
  BitReader number_bits(LATHE_TRY(decode_symbols(in, alphabet, number_contexts, symbols)));
  for (size_t i = 0; i < symbols.size(); ++i)
    numbers[i] = number_of(symbols[i], number_bits.get(extra_bits(symbols[i]))) + 1;
  if (!gap_bits.exact() || !number_bits.exact()) return corruption("the changes do not end where they should");

  constexpr uint32_t kNever = ~0U;       // more than there are elements
  std::array<uint32_t, kContexts> left;  // unchanged elements before the next change, per context
  left.fill(kNever);
  for (uint32_t c = 0; c < contexts; ++c) {
    if (cursors[c].next < cursors[c].end) left[c] = gaps[cursors[c].next];
  }
  changes.clear();
  changes.reserve(symbols.size());
  Cursor& crossed = cursors[contexts];
  size_t i = 0;
  while (true) {
    const bool last = crossed.next == crossed.end;
    const size_t stop = last ? known.size() : i + gaps[crossed.next];
    if (stop > known.size() || (!last && stop == known.size()))
      return corruption("a change lies behind the last element");
    for (; i < stop; ++i) {
      const uint8_t c = known[i];
      if (left[c]-- != 0) [[likely]]
        continue;
      Cursor& cursor = cursors[c];
      changes.push_back({.element = static_cast<uint32_t>(i), .number = numbers[cursor.next]});
      left[c] = ++cursor.next < cursor.end ? gaps[cursor.next] : kNever;
    }
    if (last) break;
    changes.push_back({.element = static_cast<uint32_t>(i++), .number = numbers[crossed.next++]});
  }
  if (changes.size() != symbols.size()) return corruption("a change lies behind the last element");
  return {};
}

}  // namespace lathe::checkpoint
