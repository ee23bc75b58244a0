#include "codec/bit_ranks.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/clones.h"
#include "codec/wide.h"

#ifdef LATHE_HAS_WIDE
#include <immintrin.h>
#endif

namespace lathe::codec {
namespace {

// 64 bytes to bits, whether (byte & mask) == wanted. Eight at a time: of bytes that are zero once `wanted` is taken
// from them, the top bits; the product gathers them.
uint64_t equal_word(const uint8_t* values, uint8_t mask, uint8_t wanted) {
  constexpr uint64_t kLow = 0x7F7F7F7F7F7F7F7FU, kEach = 0x0101010101010101U;
  uint64_t word = 0;
  for (size_t i = 0; i < 8; ++i) {
    uint64_t eight;
    std::memcpy(&eight, values + 8 * i, sizeof eight);
    eight = (eight & mask * kEach) ^ wanted * kEach;
    const uint64_t zeros = ~(((eight & kLow) + kLow) | eight | kLow) >> 7;
    word |= (zeros * 0x0102040810204080U >> 56) << (8 * i);
  }
  return word;
}

void equal_words(const uint8_t* values, size_t words, uint8_t mask, uint8_t wanted, uint64_t* out) {
  for (size_t w = 0; w < words; ++w) out[w] = equal_word(values + 64 * w, mask, wanted);
}

#ifdef LATHE_HAS_WIDE
LATHE_WIDE void equal_words_wide(const uint8_t* values, size_t words, uint8_t mask, uint8_t wanted, uint64_t* out) {
  const __m512i some = _mm512_set1_epi8(static_cast<char>(mask)), all = _mm512_set1_epi8(static_cast<char>(wanted));
  for (size_t w = 0; w < words; ++w)
    out[w] = _mm512_cmpeq_epi8_mask(_mm512_and_si512(_mm512_loadu_si512(values + 64 * w), some), all);
}

[[gnu::target("avx2")]] void equal_words_avx2(const uint8_t* values, size_t words, uint8_t mask, uint8_t wanted,
                                              uint64_t* out) {
  const __m256i some = _mm256_set1_epi8(static_cast<char>(mask)), all = _mm256_set1_epi8(static_cast<char>(wanted));
  for (size_t w = 0; w < words; ++w) {
    const auto* from = reinterpret_cast<const __m256i*>(values + 64 * w);
    const __m256i low = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_loadu_si256(from), some), all),
                  high = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_loadu_si256(from + 1), some), all);
    out[w] = static_cast<uint32_t>(_mm256_movemask_epi8(low)) |
             uint64_t{static_cast<uint32_t>(_mm256_movemask_epi8(high))} << 32;
  }
}
#endif

void best_equal_words(const uint8_t* values, size_t words, uint8_t mask, uint8_t wanted, uint64_t* out) {
#ifdef LATHE_HAS_WIDE
  static const bool avx2 = __builtin_cpu_supports("avx2");
  if (has_wide()) return equal_words_wide(values, words, mask, wanted, out);
  if (avx2) return equal_words_avx2(values, words, mask, wanted, out);
#endif
  equal_words(values, words, mask, wanted, out);
}

// Bits past the values are those of `fill`.
void equal_bits(std::span<const uint8_t> values, uint8_t mask, uint8_t wanted, uint8_t fill, uint64_t* words) {
  const size_t whole = values.size() / 64;
  best_equal_words(values.data(), whole, mask, wanted, words);
  if (values.size() % 64 == 0) return;
  uint8_t rest[64];
  std::memset(rest, fill, sizeof rest);
  std::memcpy(rest, &values[64 * whole], values.size() % 64);
  words[whole] = equal_word(rest, mask, wanted);
}

// Whether any bit of the mask is set.
void any_bits(std::span<const uint8_t> values, uint8_t mask, uint64_t* words) {
  equal_bits(values, mask, 0, 0, words);
  for (size_t w = 0; w < words_for(values.size()); ++w) words[w] = ~words[w];
}

}  // namespace

void equal_bits(std::span<const uint8_t> values, uint8_t wanted, uint64_t* words) {
  equal_bits(values, 0xFF, wanted, wanted ^ 1U, words);
}

void sixteen_bits(std::span<const uint8_t> values, uint64_t* words) {
  any_bits(values, 0xF0, words);
}

void nonzero_bits(std::span<const uint8_t> values, uint64_t* words) {
  any_bits(values, 0xFF, words);
}

LATHE_CLONES void count_stretches(std::span<const uint64_t> words, size_t stretch, uint16_t* counts) {
  for (size_t first = 0; first < words.size(); first += stretch) {
    int sum = 0;
    for (size_t w = first; w < std::min(words.size(), first + stretch); ++w) sum += std::popcount(words[w]);
    *counts++ = static_cast<uint16_t>(sum);
  }
}

LATHE_CLONES void gaps_of(std::span<const uint64_t> kind, std::span<const uint64_t> counted,
                          std::span<const uint32_t> elements, std::span<uint32_t> ranks, uint32_t* gaps) {
  uint32_t passed = 0;
  for (size_t word = 0; word < kind.size(); ++word) {
    ranks[word] = passed;
    passed += static_cast<uint32_t>(std::popcount(kind[word] & counted[word]));
  }
  uint32_t before = 0;
  for (size_t k = 0; k < elements.size(); ++k) {
    const size_t word = elements[k] / 64;
    const uint64_t below = (uint64_t{1} << (elements[k] % 64)) - 1;
    const uint32_t here = ranks[word] + static_cast<uint32_t>(std::popcount(kind[word] & counted[word] & below));
    gaps[k] = here - before;
    before = here;
  }
}

namespace {

// `left` is how many of the kind still lie between the word's begin and the next element.
LATHE_CLONES size_t place_loop(std::span<const uint64_t> kind, std::span<const uint32_t> gaps, uint32_t* elements) {
  size_t k = 0;
  uint64_t left = gaps[0];
  for (size_t word = 0; word < kind.size(); ++word) {
    uint64_t bits = kind[word];
    auto count = static_cast<uint32_t>(std::popcount(bits));
    while (left < count) {
      count -= static_cast<uint32_t>(left) + 1;
      for (; left > 0; --left) bits &= bits - 1;
      elements[k] = static_cast<uint32_t>(64 * word) + static_cast<uint32_t>(std::countr_zero(bits));
      bits &= bits - 1;
      if (++k == gaps.size()) return k;
      left = gaps[k];
    }
    left -= count;
  }
  return k;
}

#ifdef LATHE_HAS_WIDE
LATHE_WIDE size_t place_wide(std::span<const uint64_t> kind, std::span<const uint32_t> gaps, uint32_t* elements) {
  size_t k = 0;
  uint64_t left = gaps[0];
  for (size_t word = 0; word < kind.size(); ++word) {
    const uint64_t bits = kind[word], count = static_cast<uint64_t>(std::popcount(bits));
    while (left < count) {
      const uint64_t bit = _pdep_u64(uint64_t{1} << left, bits);
      elements[k] = static_cast<uint32_t>(64 * word) + static_cast<uint32_t>(std::countr_zero(bit));
      if (++k == gaps.size()) return k;
      left += uint64_t{gaps[k]} + 1;
    }
    left -= count;
  }
  return k;
}
#endif

}  // namespace

size_t place(std::span<const uint64_t> kind, std::span<const uint32_t> gaps, uint32_t* elements) {
  if (gaps.empty()) return 0;
#ifdef LATHE_HAS_WIDE
  if (has_wide()) return place_wide(kind, gaps, elements);
#endif
  return place_loop(kind, gaps, elements);
}

}  // namespace lathe::codec
