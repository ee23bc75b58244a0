#include "checkpoint/changes.h"

#include <algorithm>
#include <cmath>

#include "checkpoint/bit_ranks.h"
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
  std::vector<uint32_t> elements, gaps, numbers;

  uint32_t scale() const {
    double sum = 0;
    for (const uint32_t gap : gaps) sum += gap;
    const double mean = gaps.empty() ? 0 : sum / static_cast<double>(gaps.size());
    return static_cast<uint32_t>(2 * std::log2(mean + 1));
  }
};

std::vector<List> make_lists(std::span<const Change> changes, std::span<const uint8_t> before,
                             std::span<const uint8_t> after, uint32_t contexts) {
  std::vector<List> lists(contexts + 1);
  std::vector<uint64_t> unchanged(words_for(before.size()), ~uint64_t{0}), kind(unchanged.size());
  for (const Change& change : changes) {
    const uint32_t i = change.element;
    unchanged[i / 64] &= ~(uint64_t{1} << (i % 64));
    List& list = lists[before[i] == after[i] ? before[i] : contexts];
    list.elements.push_back(i);
    list.numbers.push_back(change.number);
  }
  for (uint32_t c = 0; c <= contexts; ++c) {
    List& list = lists[c];
    list.gaps.resize(list.elements.size());
    if (list.elements.empty()) continue;
    if (c < contexts) {
      equal_bits(before, static_cast<uint8_t>(c), kind.data());
      gaps_of(kind.data(), unchanged.data(), list.elements, list.gaps.data());
      continue;
    }
    for (size_t k = 0, next = 0; k < list.gaps.size(); next = list.elements[k++] + 1)
      list.gaps[k] = list.elements[k] - static_cast<uint32_t>(next);
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

// A decoder's list: its places in gaps and numbers.
struct Places {
  size_t begin = 0, end = 0;
};

// From gaps to elements, list by list. Takes the elements of the last list out of `known`, for the others.
Status place_changes(std::span<const Places> lists, std::span<const uint32_t> gaps, std::span<uint8_t> known,
                     std::vector<uint32_t>& elements) {
  constexpr uint8_t kNoContext = 255;
  const auto behind = [] { return corruption("a change lies behind the last element"); };
  elements.resize(gaps.size());
  const size_t contexts = lists.size() - 1;
  uint64_t next = 0;
  for (size_t k = lists[contexts].begin; k < lists[contexts].end; ++k) {
    next += gaps[k];
    if (next >= known.size()) return behind();
    known[next] = kNoContext;
    elements[k] = static_cast<uint32_t>(next++);
  }
  std::vector<uint64_t> kind(words_for(known.size()));
  for (size_t c = 0; c < contexts; ++c) {
    const auto [begin, end] = lists[c];
    if (begin == end) continue;
    equal_bits(known, static_cast<uint8_t>(c), kind.data());
    if (place(kind, gaps.subspan(begin, end - begin), &elements[begin]) != end - begin) return behind();
  }
  return {};
}

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

Status decode_changes(std::span<const std::byte>& in, std::span<uint8_t> known, uint32_t contexts, uint32_t alphabet,
                      std::vector<Change>& changes) {
  std::vector<Places> lists(contexts + 1);
  std::vector<uint8_t> scales(contexts + 1), gap_contexts, number_contexts;
  for (uint32_t c = 0; c <= contexts; ++c) {
    const uint64_t count = LATHE_TRY(take_varint(in));
    if (count > known.size() - gap_contexts.size()) return corruption("more elements changed than there are");
    if (count > 0) scales[c] = LATHE_TRY(take<uint8_t>(in));
    if (scales[c] > kMaxScale) return corruption("a list of changes has an impossible scale");
    lists[c] = {.begin = gap_contexts.size(), .end = gap_contexts.size() + count};
    gap_contexts.resize(lists[c].end, gap_context(scales[c]));
    number_contexts.resize(lists[c].end, number_context(c, contexts));
  }
  std::vector<uint8_t> symbols(gap_contexts.size());
  std::vector<uint32_t> gaps(symbols.size());
  BitReader gap_bits(LATHE_TRY(decode_symbols(in, kGapAlphabet, gap_contexts, symbols)));
  for (uint32_t c = 0; c <= contexts; ++c) {
    const uint32_t bits = remainder_bits(scales[c]);
    for (size_t i = lists[c].begin; i < lists[c].end; ++i) {
      const uint64_t quotient = number_of(symbols[i], gap_bits.get(extra_bits(symbols[i])));
      const uint64_t gap = quotient << bits | gap_bits.get(bits);
      if (gap >= known.size()) return corruption("a change lies behind the last element");
      gaps[i] = static_cast<uint32_t>(gap);
    }
  }
  BitReader number_bits(LATHE_TRY(decode_symbols(in, alphabet, number_contexts, symbols)));
  changes.resize(symbols.size());
  for (size_t i = 0; i < symbols.size(); ++i)
    changes[i].number = number_of(symbols[i], number_bits.get(extra_bits(symbols[i]))) + 1;
  if (!gap_bits.exact() || !number_bits.exact()) return corruption("the changes do not end where they should");
  std::vector<uint32_t> elements;
  LATHE_TRY(place_changes(lists, gaps, known, elements));
  for (size_t i = 0; i < elements.size(); ++i) changes[i].element = elements[i];
  return {};
}

}  // namespace lathe::checkpoint
