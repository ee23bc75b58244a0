// The loops of the tile codec that touch every element, one overload per element type of ulp.h, compiled for several
// instruction sets (base/clones.h, wide.h).
//
// The *context* of a number is its exponent counted from `base` and clamped to 0 .. `last`; integers have context 0.
// Threads: pure functions. Pointers need no alignment; outputs do not overlap inputs. Bits are words_for(count) words
// of bit_ranks.h.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "codec/entropy.h"
#include "codec/ulp.h"

namespace lathe::codec {

struct ContextRange {
  uint32_t base = 0;  // the exponent of context 0
  uint32_t last = 0;  // the highest context, below kContexts
};

// A number of context c is near an edge if its magnitude is less than below[c], or from[c] or more.
struct NearEdges {
  std::array<uint32_t, kContexts> below{}, from{};
};

// Per context: the least number that is rare, at most kFewSymbols.
using RareFrom = std::array<uint8_t, kContexts>;

// What becomes of elements. Per element: its zigzagged step, a number; and the pair of its old context and that
// number's symbol, if it is below kFewSymbols, else symbol 0. Bits of those whose number is rare in its context, and of
// those whose context changes.
template <class Element>
struct CodedSteps {
  typename Element::Bits* numbers;
  Pair* pairs;
  uint64_t *rare, *crossed;
};

#define LATHE_ELEMENT_LOOPS(Element)                                                                         \
  /* contexts[i] of values[i]. */                                                                            \
  void contexts_of(Element, const std::byte* values, size_t count, ContextRange range, uint8_t* contexts);   \
  /* Bits of elements that changed. */                                                                       \
  void changed_bits(Element, const std::byte* before, const std::byte* after, size_t count, uint64_t* bits); \
  /* What becomes of elements. */                                                                            \
  void steps_of(Element, const std::byte* before, const std::byte* after, size_t count, ContextRange range,  \
                const RareFrom& rare_from, CodedSteps<Element> out);                                         \
  /* Bits of values near an edge of their context; only of floating-point types. */                          \
  void near_bits(Element, const std::byte* values, size_t count, ContextRange range, const NearEdges& near,  \
                 uint64_t* bits);                                                                            \
  /* out[i] is numbers[i] (zigzagged) steps from known[i], or that many back. */                             \
  void step_from(Element, const std::byte* known, const Element::Bits* numbers, size_t count, bool back,     \
                 std::byte* out);
LATHE_ELEMENT_LOOPS(Byte)
LATHE_ELEMENT_LOOPS(Word16)
LATHE_ELEMENT_LOOPS(Word32)
LATHE_ELEMENT_LOOPS(BFloat16)
LATHE_ELEMENT_LOOPS(Float16)
LATHE_ELEMENT_LOOPS(Float32)
#undef LATHE_ELEMENT_LOOPS

template <class Element>
[[gnu::always_inline]] inline uint32_t context_of(typename Element::Bits bits, ContextRange range) {
  const auto exponent = static_cast<int32_t>(Element::magnitude(bits) >> Element::kMantissa);
  return static_cast<uint32_t>(
      std::clamp(exponent - static_cast<int32_t>(range.base), 0, static_cast<int32_t>(range.last)));
}

// The zigzagged step.
template <class Element>
[[gnu::always_inline]] inline typename Element::Bits step_number(typename Element::Bits from,
                                                                 typename Element::Bits to) {
  using Bits = typename Element::Bits;
  return zigzag(static_cast<Bits>(Element::ordinal(to) - Element::ordinal(from)));
}

// The number that lies `number` (zigzagged) steps from `known`, or that many back.
template <class Element>
[[gnu::always_inline]] inline typename Element::Bits stepped(typename Element::Bits known, uint32_t number, bool back) {
  using Bits = typename Element::Bits;
  const auto flip = static_cast<Bits>(back ? -1 : 0);  // (x ^ -1) + 1 is -x; a product of two Bits may overflow an int
  const auto step = static_cast<Bits>((unzigzag(static_cast<Bits>(number)) ^ flip) + (back ? 1 : 0));
  return Element::from_ordinal(static_cast<Bits>(Element::ordinal(known) + step));
}

// The nearest number of another context: how many steps away, at least 1, and whether it is the larger one.
struct Edge {
  uint32_t distance = 0;
  bool up = false;
};
template <class Element>
[[gnu::always_inline]] inline Edge nearest_edge(uint32_t magnitude, uint32_t context, ContextRange range) {
  const uint32_t low = (range.base + context) << Element::kMantissa;
  const uint32_t down = context > 0 ? magnitude - low + 1 : ~0U;
  const uint32_t up = context < range.last ? low + (1U << Element::kMantissa) - magnitude : ~0U;
  return down <= up ? Edge{.distance = down, .up = false} : Edge{.distance = up, .up = true};
}

}  // namespace lathe::codec
