// element_loops.h with AVX-512, for types of 16 bits. Each does a multiple of 64 elements from the first on, as many as
// there are whole words of bits, and returns how many: 0 for other types and where has_wide() is false.
// Threads: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/element_loops.h"
#include "codec/wide.h"

namespace lathe::codec {

#ifdef LATHE_HAS_WIDE
#define LATHE_WIDE_LOOPS(Element)                                                                                   \
  size_t wide_changed_bits(Element, const std::byte* before, const std::byte* after, size_t count, uint64_t* bits); \
  size_t wide_steps_of(Element, const std::byte* before, const std::byte* after, size_t count, ContextRange range,  \
                       const RareFrom& rare_from, CodedSteps<Element> out);                                         \
  size_t wide_near_bits(Element, const std::byte* values, size_t count, ContextRange range, const NearEdges& edges, \
                        uint64_t* bits);
LATHE_WIDE_LOOPS(Word16)
LATHE_WIDE_LOOPS(BFloat16)
LATHE_WIDE_LOOPS(Float16)
#undef LATHE_WIDE_LOOPS
#endif

template <class Element>
size_t wide_changed_bits(Element, const std::byte*, const std::byte*, size_t, uint64_t*) {
  return 0;
}
template <class Element>
size_t wide_steps_of(Element, const std::byte*, const std::byte*, size_t, ContextRange, const RareFrom&,
                     CodedSteps<Element>) {
  return 0;
}
template <class Element>
size_t wide_near_bits(Element, const std::byte*, size_t, ContextRange, const NearEdges&, uint64_t*) {
  return 0;
}

}  // namespace lathe::codec
