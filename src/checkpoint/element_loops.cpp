#include "checkpoint/element_loops.h"

#include "base/clones.h"
#include "checkpoint/bit_ranks.h"
#include "checkpoint/element_loops_wide.h"

namespace lathe::checkpoint {
namespace {

constexpr size_t kWord = 64;  // elements

template <class Element>
[[gnu::always_inline]] inline void contexts_loop(const std::byte* values, size_t count, ContextRange range,
                                                 uint8_t* __restrict contexts) {
  for (size_t i = 0; i < count; ++i)
    contexts[i] = static_cast<uint8_t>(context_of<Element>(load<typename Element::Bits>(values, i), range));
}

template <class Element>
[[gnu::always_inline]] inline void changed_loop(const std::byte* before, const std::byte* after, size_t count,
                                                uint64_t* bits) {
  using Bits = typename Element::Bits;
  for (size_t first = 0; first < count; first += kWord) {
    const size_t n = std::min(kWord, count - first);
    uint8_t changed[kWord] = {};
    for (size_t i = 0; i < n; ++i) changed[i] = load<Bits>(before, first + i) != load<Bits>(after, first + i) ? 1 : 0;
    equal_bits(changed, 1, bits++);
  }
}

// symbol_of() without a branch: four symbols per power of two are the top bits of the number as a float.
[[gnu::always_inline]] inline uint8_t quick_symbol(uint32_t number) {
  const uint32_t top = number < (1U << 24) ? number : number & 0xFFFFFF00U;  // what a float holds exactly
  const auto bits = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(top >> 1)));
  constexpr uint32_t kOne = 127U << 2;  // the bits of 1.0, shifted; the number was halved to stay positive
  return static_cast<uint8_t>(number < 16 ? number : (bits >> 21) - kOne + 4);
}

template <class Element>
[[gnu::always_inline]] inline void pairs_loop(const std::byte* before, const std::byte* after, size_t count,
                                              ContextRange range, Pair* __restrict pairs, uint64_t* __restrict extra,
                                              uint64_t* __restrict crossed) {
  using Bits = typename Element::Bits;
  for (size_t first = 0; first < count; first += kWord) {
    const size_t n = std::min(kWord, count - first);
    uint8_t large[kWord] = {}, crosses[kWord] = {};
    for (size_t i = 0; i < n; ++i) {
      const Bits from = load<Bits>(before, first + i), to = load<Bits>(after, first + i);
      const uint32_t context = context_of<Element>(from, range);
      const uint8_t symbol = quick_symbol(step_number<Element>(from, to));
      pairs[first + i] = pair_of(context, symbol);
      large[i] = symbol >= 16 ? 1 : 0;
      crosses[i] = context_of<Element>(to, range) != context ? 1 : 0;
    }
    equal_bits(large, 1, extra++);
    equal_bits(crosses, 1, crossed++);
  }
}

template <class Element>
[[gnu::always_inline]] inline void near_loop(const std::byte* values, size_t count, ContextRange range,
                                             const NearEdges& edges, uint64_t* bits) {
  using Bits = typename Element::Bits;
  for (size_t first = 0; first < count; first += kWord) {
    const size_t n = std::min(kWord, count - first);
    uint8_t near[kWord] = {};
    for (size_t i = 0; i < n; ++i) {
      const Bits value = load<Bits>(values, first + i);
      const uint32_t magnitude = Element::magnitude(value), context = context_of<Element>(value, range);
      near[i] = magnitude < edges.below[context] || magnitude >= edges.from[context] ? 1 : 0;
    }
    equal_bits(near, 1, bits++);
  }
}

template <class Element>
[[gnu::always_inline]] inline void step_loop(const std::byte* known, const typename Element::Bits* __restrict numbers,
                                             size_t count, bool back, std::byte* __restrict out) {
  for (size_t i = 0; i < count; ++i)
    store(out, i, stepped<Element>(load<typename Element::Bits>(known, i), numbers[i], back));
}

}  // namespace

// The wide loops do whole words, and leave what is behind them: `done` elements are done.
#define LATHE_ELEMENT_LOOPS(Element)                                                                                  \
  LATHE_CLONES void contexts_of(Element, const std::byte* values, size_t count, ContextRange range,                   \
                                uint8_t* contexts) {                                                                  \
    contexts_loop<Element>(values, count, range, contexts);                                                           \
  }                                                                                                                   \
  LATHE_CLONES void changed_bits(Element, const std::byte* before, const std::byte* after, size_t count,              \
                                 uint64_t* bits) {                                                                    \
    const size_t done = wide_changed_bits(Element(), before, after, count, bits), at = done * sizeof(Element::Bits);  \
    changed_loop<Element>(before + at, after + at, count - done, bits + done / kWord);                                \
  }                                                                                                                   \
  LATHE_CLONES void pairs_of(Element, const std::byte* before, const std::byte* after, size_t count,                  \
                             ContextRange range, Pair* pairs, uint64_t* extra, uint64_t* crossed) {                   \
    const size_t done = wide_pairs_of(Element(), before, after, count, range, pairs, extra, crossed),                 \
                 at = done * sizeof(Element::Bits);                                                                   \
    pairs_loop<Element>(before + at, after + at, count - done, range, pairs + done, extra + done / kWord,             \
                        crossed + done / kWord);                                                                      \
  }                                                                                                                   \
  LATHE_CLONES void near_bits(Element, const std::byte* values, size_t count, ContextRange range,                     \
                              const NearEdges& edges, uint64_t* bits) {                                               \
    const size_t done = wide_near_bits(Element(), values, count, range, edges, bits);                                 \
    near_loop<Element>(values + done * sizeof(Element::Bits), count - done, range, edges, bits + done / kWord);       \
  }                                                                                                                   \
  uint8_t* look_up(Element, const std::byte* values, std::span<const uint64_t> bits, const uint8_t* table,            \
                   uint8_t* out) {                                                                                    \
    const size_t done = wide_look_up(Element(), values, bits, table, out);                                            \
    each_bit(bits.subspan(done),                                                                                      \
             [&](size_t i) { *out++ = table[Element::magnitude(load<Element::Bits>(values, done * kWord + i))]; });   \
    return out;                                                                                                       \
  }                                                                                                                   \
  LATHE_CLONES void step_from(Element, const std::byte* known, const Element::Bits* numbers, size_t count, bool back, \
                              std::byte* out) {                                                                       \
    step_loop<Element>(known, numbers, count, back, out);                                                             \
  }
LATHE_ELEMENT_LOOPS(Byte)
LATHE_ELEMENT_LOOPS(Word16)
LATHE_ELEMENT_LOOPS(Word32)
LATHE_ELEMENT_LOOPS(BFloat16)
LATHE_ELEMENT_LOOPS(Float16)
LATHE_ELEMENT_LOOPS(Float32)
#undef LATHE_ELEMENT_LOOPS

}  // namespace lathe::checkpoint
