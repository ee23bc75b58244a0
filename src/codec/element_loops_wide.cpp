#include "codec/element_loops_wide.h"

#ifdef LATHE_HAS_WIDE

#include <immintrin.h>

#include <bit>

namespace lathe::codec {
namespace {

constexpr size_t kHalf = 32;  // elements in a vector: half a word of bits
constexpr size_t kWord = 2 * kHalf;

LATHE_WIDE inline __m512i load_half(const std::byte* values, size_t i) {
  return _mm512_loadu_si512(values + 2 * i);
}

uint64_t join(__mmask32 low, __mmask32 high) {
  return low | uint64_t{high} << kHalf;
}

template <class Element>
LATHE_WIDE inline __m512i ordinals(__m512i bits) {
  if constexpr (Element::kFloat) {
    const __m512i sign = _mm512_srai_epi16(bits, 15);
    return _mm512_xor_si512(bits, _mm512_or_si512(sign, _mm512_set1_epi16(static_cast<short>(Element::kSign))));
  } else {
    return bits;
  }
}

template <class Element>
LATHE_WIDE inline __m512i magnitudes(__m512i bits) {
  return Element::kFloat ? _mm512_and_si512(bits, _mm512_set1_epi16(0x7FFF)) : _mm512_setzero_si512();
}

struct Range {
  __m512i base, last;
};

template <class Element>
LATHE_WIDE inline __m512i contexts(__m512i magnitudes, Range range) {
  const __m512i exponents = _mm512_srli_epi16(magnitudes, Element::kMantissa);
  return _mm512_min_epu16(_mm512_subs_epu16(exponents, range.base), range.last);
}

LATHE_WIDE inline __m512i zigzags(__m512i steps) {
  return _mm512_xor_si512(_mm512_add_epi16(steps, steps), _mm512_srai_epi16(steps, 15));
}

struct Masks {
  __mmask32 rare, crossed;
};

template <class Element>
LATHE_WIDE inline Masks steps_of_half(__m512i before, __m512i after, Range range, __m512i rare_from, uint16_t* numbers,
                                      Pair* pairs) {
  const __m512i number = zigzags(_mm512_sub_epi16(ordinals<Element>(after), ordinals<Element>(before)));
  _mm512_storeu_si512(numbers, number);
  const __m512i symbols =
      _mm512_maskz_mov_epi16(_mm512_cmplt_epu16_mask(number, _mm512_set1_epi16(kFewSymbols)), number);
  const __m512i from = contexts<Element>(magnitudes<Element>(before), range),
                to = contexts<Element>(magnitudes<Element>(after), range);
  static_assert(kSymbols == 1 << 7);
  _mm512_storeu_si512(pairs, _mm512_or_si512(_mm512_slli_epi16(from, 7), symbols));
  return {.rare = _mm512_cmpge_epu16_mask(number, _mm512_permutexvar_epi16(from, rare_from)),
          .crossed = _mm512_cmpneq_epu16_mask(from, to)};
}

LATHE_WIDE inline Range wide_range(ContextRange range) {
  return {.base = _mm512_set1_epi16(static_cast<short>(range.base)),
          .last = _mm512_set1_epi16(static_cast<short>(range.last))};
}

template <class Element>
LATHE_WIDE inline __mmask32 near_half(__m512i values, Range range, __m512i below, __m512i from) {
  const __m512i magnitude = magnitudes<Element>(values), context = contexts<Element>(magnitude, range);
  return _mm512_cmplt_epu16_mask(magnitude, _mm512_permutexvar_epi16(context, below)) |
         _mm512_cmpge_epu16_mask(magnitude, _mm512_permutexvar_epi16(context, from));
}

template <class Element>
LATHE_WIDE void steps_loop(const std::byte* before, const std::byte* after, size_t count, ContextRange range,
                           const RareFrom& rare_from, CodedSteps<Element> out) {
  const Range wide = wide_range(range);
  static_assert(kContexts == kHalf);
  const __m512i rare = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rare_from.data())));
  for (size_t i = 0; i < count; i += kWord) {
    const Masks low =
        steps_of_half<Element>(load_half(before, i), load_half(after, i), wide, rare, out.numbers + i, out.pairs + i);
    const size_t k = i + kHalf;
    const Masks high =
        steps_of_half<Element>(load_half(before, k), load_half(after, k), wide, rare, out.numbers + k, out.pairs + k);
    *out.rare++ = join(low.rare, high.rare);
    *out.crossed++ = join(low.crossed, high.crossed);
  }
}

LATHE_WIDE void changed_loop(const std::byte* before, const std::byte* after, size_t count, uint64_t* bits) {
  for (size_t i = 0; i < count; i += kWord) {
    *bits++ = join(_mm512_cmpneq_epi16_mask(load_half(before, i), load_half(after, i)),
                   _mm512_cmpneq_epi16_mask(load_half(before, i + kHalf), load_half(after, i + kHalf)));
  }
}

LATHE_WIDE inline __m512i narrow(const std::array<uint32_t, kContexts>& values) {
  const __m256i low = _mm512_cvtusepi32_epi16(_mm512_loadu_si512(values.data())),
                high = _mm512_cvtusepi32_epi16(_mm512_loadu_si512(values.data() + kContexts / 2));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

template <class Element>
LATHE_WIDE void near_loop(const std::byte* values, size_t count, ContextRange range, const NearEdges& edges,
                          uint64_t* bits) {
  const Range wide = wide_range(range);
  const __m512i below = narrow(edges.below), from = narrow(edges.from);
  for (size_t i = 0; i < count; i += kWord) {
    *bits++ = join(near_half<Element>(load_half(values, i), wide, below, from),
                   near_half<Element>(load_half(values, i + kHalf), wide, below, from));
  }
}

size_t whole(size_t count) {
  return has_wide() ? count / kWord * kWord : 0;
}

}  // namespace

#define LATHE_WIDE_LOOPS(Element)                                                                                    \
  size_t wide_changed_bits(Element, const std::byte* before, const std::byte* after, size_t count, uint64_t* bits) { \
    if (whole(count) > 0) changed_loop(before, after, whole(count), bits);                                           \
    return whole(count);                                                                                             \
  }                                                                                                                  \
  size_t wide_steps_of(Element, const std::byte* before, const std::byte* after, size_t count, ContextRange range,   \
                       const RareFrom& rare_from, CodedSteps<Element> out) {                                         \
    if (whole(count) > 0) steps_loop<Element>(before, after, whole(count), range, rare_from, out);                   \
    return whole(count);                                                                                             \
  }                                                                                                                  \
  size_t wide_near_bits(Element, const std::byte* values, size_t count, ContextRange range, const NearEdges& edges,  \
                        uint64_t* bits) {                                                                            \
    if (whole(count) > 0) near_loop<Element>(values, whole(count), range, edges, bits);                              \
    return whole(count);                                                                                             \
  }

LATHE_WIDE_LOOPS(Word16)
LATHE_WIDE_LOOPS(BFloat16)
LATHE_WIDE_LOOPS(Float16)
#undef LATHE_WIDE_LOOPS

}  // namespace lathe::codec

#endif
