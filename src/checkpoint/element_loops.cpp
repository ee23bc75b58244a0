#include "checkpoint/element_loops.h"

#include <algorithm>

#include "base/clones.h"

namespace lathe::checkpoint {
namespace {

template <class Element>
[[gnu::always_inline]] inline void contexts_loop(const std::byte* values, size_t count, ContextRange range,
                                                 uint8_t* __restrict contexts) {
  for (size_t i = 0; i < count; ++i) {
    const auto exponent =
        static_cast<int32_t>(Element::magnitude(load<typename Element::Bits>(values, i)) >> Element::kMantissa);
    contexts[i] = static_cast<uint8_t>(
        std::clamp(exponent - static_cast<int32_t>(range.base), 0, static_cast<int32_t>(range.last)));
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
[[gnu::always_inline]] inline void symbols_loop(const std::byte* before, const std::byte* after, size_t count,
                                                uint8_t* __restrict symbols) {
  using Bits = typename Element::Bits;
  constexpr size_t kChunk = 64;
  Bits numbers[kChunk];
  for (size_t first = 0; first < count; first += kChunk) {
    const size_t n = std::min(kChunk, count - first);
    Bits most = 0;
    for (size_t i = 0; i < n; ++i) {
      const Bits from = Element::ordinal(load<Bits>(before, first + i)),
                 to = Element::ordinal(load<Bits>(after, first + i));
      numbers[i] = zigzag(static_cast<Bits>(to - from));
      most = std::max(most, numbers[i]);
    }
    if (most < 16) {
      for (size_t i = 0; i < n; ++i) symbols[first + i] = static_cast<uint8_t>(numbers[i]);
    } else {
      for (size_t i = 0; i < n; ++i) symbols[first + i] = quick_symbol(numbers[i]);
    }
  }
}

template <class Element>
[[gnu::always_inline]] inline void step_loop(const std::byte* known, const uint32_t* __restrict numbers, size_t count,
                                             bool back, std::byte* __restrict out) {
  for (size_t i = 0; i < count; ++i)
    store(out, i, stepped<Element>(load<typename Element::Bits>(known, i), numbers[i], back));
}

}  // namespace

#define LATHE_ELEMENT_LOOPS(Element)                                                                             \
  LATHE_CLONES void contexts_of(Element, const std::byte* values, size_t count, ContextRange range,              \
                                uint8_t* contexts) {                                                             \
    contexts_loop<Element>(values, count, range, contexts);                                                      \
  }                                                                                                              \
  LATHE_CLONES void symbols_of(Element, const std::byte* before, const std::byte* after, size_t count,           \
                               uint8_t* symbols) {                                                               \
    symbols_loop<Element>(before, after, count, symbols);                                                        \
  }                                                                                                              \
  LATHE_CLONES void step_from(Element, const std::byte* known, const uint32_t* numbers, size_t count, bool back, \
                              std::byte* out) {                                                                  \
    step_loop<Element>(known, numbers, count, back, out);                                                        \
  }
LATHE_ELEMENT_LOOPS(Byte)
LATHE_ELEMENT_LOOPS(Word16)
LATHE_ELEMENT_LOOPS(Word32)
LATHE_ELEMENT_LOOPS(BFloat16)
LATHE_ELEMENT_LOOPS(Float16)
LATHE_ELEMENT_LOOPS(Float32)
#undef LATHE_ELEMENT_LOOPS

LATHE_CLONES void lower(uint8_t* values, size_t count, uint8_t amount) {
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<uint8_t>(values[i] - std::min(values[i], amount));
}

LATHE_CLONES uint8_t max_of(const uint8_t* values, size_t count) {
  uint8_t most = 0;
  for (size_t i = 0; i < count; ++i) most = std::max(most, values[i]);
  return most;
}

LATHE_CLONES size_t count_nonzero(const uint8_t* values, size_t count) {
  size_t sum = 0;
  while (count > 0) {  // pieces that a byte can count, which vectorises best
    const size_t n = std::min<size_t>(count, 255);
    uint8_t piece = 0;
    for (size_t i = 0; i < n; ++i) piece = static_cast<uint8_t>(piece + (values[i] != 0 ? 1 : 0));
    sum += piece;
    values += n;
    count -= n;
  }
  return sum;
}

}  // namespace lathe::checkpoint
