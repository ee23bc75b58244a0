// Which contexts to code a part's steps under: the encoder's choice; any is exact.
//
// Threads: pure functions.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "codec/element_loops.h"
#include "codec/entropy.h"
#include "codec/ulp.h"

namespace lathe::codec {

// Contexts such that the last one holds all but a few of the largest numbers, and context 0 all that are much smaller.
// From a sample.
template <class Element>
ContextRange choose_range(const std::byte* values, size_t count) {
  if constexpr (!Element::kFloat) {
    return {};
  } else {
    constexpr size_t kSample = 16384;
    const size_t stride = std::max<size_t>(1, count / kSample);
    constexpr int kExponents = 1 << (8 * sizeof(typename Element::Bits) - 1 - Element::kMantissa);
    std::array<uint32_t, kExponents> seen{};
    for (size_t i = 0; i < count; i += stride)
      ++seen[Element::magnitude(load<typename Element::Bits>(values, i)) >> Element::kMantissa];
    const size_t few = count / stride / 2048;
    size_t above = 0;
    int top = kExponents - 1;
    while (top > 0 && (above += seen[static_cast<size_t>(top)]) <= few) --top;
    return {.base = static_cast<uint32_t>(std::max(0, top - static_cast<int>(kContexts - 1))), .last = kContexts - 1};
  }
}

// Bits of the symbols under the best code, and of its tables.
double histogram_bits(const Histogram& histogram);

// Elements that left their context: how many, from one to another. The diagonal does not count.
using Transitions = std::array<std::array<uint32_t, kContexts>, kContexts>;

struct Steps {
  Histogram histogram;  // under their old contexts
  Transitions transitions{};
};

// How many of the lowest contexts to put together, less one: a rare exponent is not worth a table; and where steps are
// as large as the numbers, telling which exponents changed costs more than exponents help.
uint32_t contexts_to_merge(const Steps& steps);

// The same symbols with so many contexts merged into context 0.
Histogram merged(const Histogram& histogram, uint32_t merge);

}  // namespace lathe::codec
