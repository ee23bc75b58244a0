#include "codec/element_loops.h"

#include "base/clones.h"
#include "codec/bit_ranks.h"
#include "codec/element_loops_wide.h"

namespace lathe::codec {
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

template <class Element>
[[gnu::always_inline]] inline void steps_loop(const std::byte* before, const std::byte* after, size_t count,
                                              ContextRange range, const RareFrom& rare_from, CodedSteps<Element> out) {
  using Bits = typename Element::Bits;
  auto* __restrict numbers = out.numbers;
  auto* __restrict pairs = out.pairs;
  for (size_t first = 0; first < count; first += kWord) {
    const size_t n = std::min(kWord, count - first);
    uint8_t rare[kWord] = {}, crosses[kWord] = {};
    for (size_t i = 0; i < n; ++i) {
      const Bits from = load<Bits>(before, first + i), to = load<Bits>(after, first + i);
      const uint32_t context = context_of<Element>(from, range);
      const Bits number = step_number<Element>(from, to);
      numbers[first + i] = number;
      pairs[first + i] = pair_of(context, number < kFewSymbols ? number : 0);
      rare[i] = number >= rare_from[context] ? 1 : 0;
      crosses[i] = context_of<Element>(to, range) != context ? 1 : 0;
    }
    equal_bits(rare, 1, out.rare++);
    equal_bits(crosses, 1, out.crossed++);
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

// The wide loops do whole words and leave the rest: `done` elements are done.
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
  LATHE_CLONES void steps_of(Element, const std::byte* before, const std::byte* after, size_t count,                  \
                             ContextRange range, const RareFrom& rare_from, CodedSteps<Element> out) {                \
    const size_t done = wide_steps_of(Element(), before, after, count, range, rare_from, out),                        \
                 at = done * sizeof(Element::Bits);                                                                   \
    steps_loop<Element>(before + at, after + at, count - done, range, rare_from,                                      \
                        {out.numbers + done, out.pairs + done, out.rare + done / kWord, out.crossed + done / kWord}); \
  }                                                                                                                   \
  LATHE_CLONES void near_bits(Element, const std::byte* values, size_t count, ContextRange range,                     \
                              const NearEdges& edges, uint64_t* bits) {                                               \
    const size_t done = wide_near_bits(Element(), values, count, range, edges, bits);                                 \
    near_loop<Element>(values + done * sizeof(Element::Bits), count - done, range, edges, bits + done / kWord);       \
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

}  // namespace lathe::codec
