#include "checkpoint/bit_ranks.h"

#include <bit>
#include <cstring>

#include "base/clones.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace lathe::checkpoint {
namespace {

// 64 bytes to bits, eight at a time: of bytes that are zero once `wanted` is taken from them, the top bits; the product
// gathers them.
uint64_t equal_word(const uint8_t* values, uint8_t wanted) {
  constexpr uint64_t kLow = 0x7F7F7F7F7F7F7F7FU;
  uint64_t word = 0;
  for (size_t i = 0; i < 8; ++i) {
    uint64_t eight;
    std::memcpy(&eight, values + 8 * i, sizeof eight);
    eight ^= wanted * 0x0101010101010101U;
    const uint64_t zeros = ~(((eight & kLow) + kLow) | eight | kLow) >> 7;
    word |= (zeros * 0x0102040810204080U >> 56) << (8 * i);
  }
  return word;
}

void equal_words(const uint8_t* values, size_t words, uint8_t wanted, uint64_t* out) {
  for (size_t w = 0; w < words; ++w) out[w] = equal_word(values + 64 * w, wanted);
}

#if defined(__x86_64__) && defined(__GNUC__)
[[gnu::target("avx2")]] void equal_words_avx2(const uint8_t* values, size_t words, uint8_t wanted, uint64_t* out) {
  const __m256i all = _mm256_set1_epi8(static_cast<char>(wanted));
  for (size_t w = 0; w < words; ++w) {
    const auto* from = reinterpret_cast<const __m256i*>(values + 64 * w);
    const __m256i low = _mm256_cmpeq_epi8(_mm256_loadu_si256(from), all),
                  high = _mm256_cmpeq_epi8(_mm256_loadu_si256(from + 1), all);
    out[w] = static_cast<uint32_t>(_mm256_movemask_epi8(low)) |
             uint64_t{static_cast<uint32_t>(_mm256_movemask_epi8(high))} << 32;
  }
}
#endif

}  // namespace

void equal_bits(std::span<const uint8_t> values, uint8_t wanted, uint64_t* words) {
  const size_t whole = values.size() / 64;
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool wide = __builtin_cpu_supports("avx2");
  wide ? equal_words_avx2(values.data(), whole, wanted, words) : equal_words(values.data(), whole, wanted, words);
#else
  equal_words(values.data(), whole, wanted, words);
#endif
  if (values.size() % 64 == 0) return;
  uint8_t rest[64];
  std::memset(rest, wanted ^ 1, sizeof rest);
  std::memcpy(rest, &values[64 * whole], values.size() % 64);
  words[whole] = equal_word(rest, wanted);
}

LATHE_CLONES void gaps_of(const uint64_t* kind, const uint64_t* counted, std::span<const uint32_t> elements,
                          uint32_t* gaps) {
  size_t word = 0;
  uint32_t passed = 0, before = 0;  // bits of the words passed; of those, up to the element before
  for (size_t k = 0; k < elements.size(); ++k) {
    for (; word < elements[k] / 64; ++word) passed += static_cast<uint32_t>(std::popcount(kind[word] & counted[word]));
    const uint64_t below = (uint64_t{1} << (elements[k] % 64)) - 1;
    const uint32_t here = passed + static_cast<uint32_t>(std::popcount(kind[word] & counted[word] & below));
    gaps[k] = here - before;
    before = here;
  }
}

LATHE_CLONES size_t place(std::span<const uint64_t> kind, std::span<const uint32_t> gaps, uint32_t* elements) {
  if (gaps.empty()) return 0;
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

}  // namespace lathe::checkpoint
