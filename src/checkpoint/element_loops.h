// The loops of the tile codec that touch every element, one overload per element type of ulp.h, compiled for several
// instruction sets (base/clones.h).
//
// The *context* of a number is its exponent counted from `base` and held within 0 .. `last`; integers have context 0.
// Threads: pure functions. Pointers need no alignment; outputs do not overlap inputs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "checkpoint/entropy.h"
#include "checkpoint/ulp.h"

namespace lathe::checkpoint {

struct ContextRange {
  uint32_t base = 0;  // the exponent of context 0
  uint32_t last = 0;  // the highest context, below kContexts
};

#define LATHE_ELEMENT_LOOPS(Element)                                                                         \
  /* contexts[i] of values[i]. */                                                                            \
  void contexts_of(Element, const std::byte* values, size_t count, ContextRange range, uint8_t* contexts);   \
  /* symbols[i] of the zigzagged step from before[i] to after[i]. */                                         \
  void symbols_of(Element, const std::byte* before, const std::byte* after, size_t count, uint8_t* symbols); \
  /* out[i] is number[i] (zigzagged) steps from known[i], or that many back. */                              \
  void step_from(Element, const std::byte* known, const uint32_t* numbers, size_t count, bool back, std::byte* out);
LATHE_ELEMENT_LOOPS(Byte)
LATHE_ELEMENT_LOOPS(Word16)
LATHE_ELEMENT_LOOPS(Word32)
LATHE_ELEMENT_LOOPS(BFloat16)
LATHE_ELEMENT_LOOPS(Float16)
LATHE_ELEMENT_LOOPS(Float32)
#undef LATHE_ELEMENT_LOOPS

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

// Sets every byte to itself less `amount`, or 0.
void lower(uint8_t* values, size_t count, uint8_t amount);
uint8_t max_of(const uint8_t* values, size_t count);  // 0 of none
size_t count_nonzero(const uint8_t* values, size_t count);

}  // namespace lathe::checkpoint
