#include "codec/rans_wide.h"

#ifdef LATHE_HAS_WIDE

#include <immintrin.h>

#include <bit>
#include <cstring>

namespace lathe::codec {
namespace {

constexpr size_t kHalf = kMostLanes / 2;
static_assert(kHalf == kWordsBefore);

// From n on: the permutation that turns sixteen by n.
constexpr auto kTurns = [] {
  std::array<uint16_t, 2 * kHalf + 1> turns{};
  for (size_t i = 0; i < turns.size(); ++i) turns[i] = static_cast<uint16_t>(i % kHalf);
  return turns;
}();

// floor(x / frequency) and the remainder. x / frequency is below 2^20 (precision 12 or more), so a float's estimate
// that is certainly not above it, by a part of less than 2^-20, is it or one less.
struct Division {
  __m512i quotient, remainder;
};
LATHE_WIDE inline Division divide(__m512i x, __m512i frequency) {
  const __m512 f = _mm512_cvtepi32_ps(frequency), near = _mm512_rcp14_ps(f);
  const __m512 reciprocal = _mm512_mul_ps(near, _mm512_fnmadd_ps(f, near, _mm512_set1_ps(2)));  // to 2^-23
  const __m512 below = _mm512_mul_ps(reciprocal, _mm512_set1_ps(1 - 0x1p-21F));
  const __m512i low = _mm512_cvttps_epu32(_mm512_mul_ps(_mm512_cvtepu32_ps(x), below));
  const __m512i rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(low, frequency));
  const __mmask16 one_more = _mm512_cmpge_epu32_mask(rest, frequency);
  return {.quotient = _mm512_mask_add_epi32(low, one_more, low, _mm512_set1_epi32(1)),
          .remainder = _mm512_mask_sub_epi32(rest, one_more, rest, frequency)};
}

// An encoder needs a table's entry for each pair. By gathers, or one by one, a round ahead so that it runs beside the
// arithmetic: on Intel's CPUs gathers take 0.8 of the other's time, on AMD's 1.2.
bool gathers_are_fast() {
  static const bool fast = !__builtin_cpu_is("amd");
  return fast;
}
LATHE_WIDE inline __m512i gather(const Pair* pairs, const uint32_t* table) {
  const __m512i index = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs)));
  return _mm512_i32gather_epi32(index, table, 4);
}
using Entries = std::array<uint32_t, kMostLanes>;
LATHE_WIDE inline void look_up(const Pair* pairs, const uint32_t* table, Entries& entries) {
  constexpr size_t kFour = 4;  // in a word
  for (size_t i = 0; i < kMostLanes; i += kFour) {
    uint64_t four;
    std::memcpy(&four, pairs + i, sizeof four);
    for (size_t k = 0; k < kFour; ++k) entries[i + k] = table[(four >> (16 * k)) & 0xFFFFU];
  }
}

LATHE_WIDE inline __m512i encode_half(__m512i x, __m512i entry, int precision, uint16_t*& end) {
  const __m512i frequency = _mm512_srli_epi32(entry, kWideFrequencyShift),
                start = _mm512_and_si512(entry, _mm512_set1_epi32((1 << kWideFrequencyShift) - 1));
  const __m512i top = _mm512_srl_epi32(x, _mm_cvtsi32_si128(32 - precision));
  const __mmask16 sheds = _mm512_cmpge_epu32_mask(top, frequency);
  const __m256i words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(sheds, x));
  const auto count = std::popcount(uint32_t{sheds});
  // Turned to the vector's end; what lies before them the next words overwrite. A masked store takes longer.
  const __m256i turn = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&kTurns[static_cast<size_t>(count)]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(end - kHalf), _mm256_permutexvar_epi16(turn, words));
  end -= count;
  const auto [quotient, remainder] = divide(_mm512_mask_srli_epi32(x, sheds, x, 16), frequency);
  const __m512i whole = _mm512_sll_epi32(quotient, _mm_cvtsi32_si128(precision));
  return _mm512_add_epi32(_mm512_add_epi32(whole, remainder), start);
}

template <bool kGather>
LATHE_WIDE uint16_t* encode_rounds(std::span<const Pair> pairs, const uint32_t* table, int precision,
                                   LaneStates& states, uint16_t* end) {
  __m512i low = _mm512_loadu_si512(states.data()), high = _mm512_loadu_si512(states.data() + kHalf);
  std::array<Entries, 2> ahead;
  const size_t rounds = pairs.size() / kMostLanes;
  if (!kGather) look_up(&pairs[(rounds - 1) * kMostLanes], table, ahead[0]);
  for (size_t done = 0; done < rounds; ++done) {
    const Pair* round = &pairs[(rounds - 1 - done) * kMostLanes];
    __m512i low_entries, high_entries;
    if constexpr (kGather) {
      low_entries = gather(round, table);
      high_entries = gather(round + kHalf, table);
    } else {
      if (done + 1 < rounds) look_up(round - kMostLanes, table, ahead[(done + 1) % 2]);
      low_entries = _mm512_loadu_si512(ahead[done % 2].data());
      high_entries = _mm512_loadu_si512(ahead[done % 2].data() + kHalf);
    }
    high = encode_half(high, high_entries, precision, end);
    low = encode_half(low, low_entries, precision, end);
  }
  _mm512_storeu_si512(states.data(), low);
  _mm512_storeu_si512(states.data() + kHalf, high);
  return end;
}

struct SlotRows {
  const uint32_t* slots;
  __m512i low, high;  // where the rows of contexts 0 .. 15 and 16 .. 31 begin
};

LATHE_WIDE inline __m512i decode_half(__m512i x, const SlotRows& rows, const uint8_t* contexts, uint8_t* symbols,
                                      const std::byte*& words) {
  const __m512i context = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(contexts)));
  const __m512i slot = _mm512_and_si512(x, _mm512_set1_epi32((1 << kDensePrecision) - 1));
  const __m512i row = _mm512_permutex2var_epi32(rows.low, context, rows.high);
  const __m512i entry = _mm512_i32gather_epi32(_mm512_add_epi32(row, slot), rows.slots, 4);
  const __m512i symbol = _mm512_and_si512(entry, _mm512_set1_epi32(0x7F));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(symbols), _mm512_cvtepi32_epi8(symbol));
  const __m512i offset = _mm512_and_si512(_mm512_srli_epi32(entry, 7), _mm512_set1_epi32(0xFFF));
  const __m512i scaled = _mm512_mullo_epi32(_mm512_srli_epi32(entry, 19), _mm512_srli_epi32(x, kDensePrecision));
  const __m512i next = _mm512_add_epi32(scaled, offset);
  const __mmask16 low = _mm512_cmplt_epu32_mask(next, _mm512_set1_epi32(kLowestState));
  const __m512i sixteen = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
  const __m512i refilled = _mm512_or_si512(_mm512_slli_epi32(next, 16), _mm512_maskz_expand_epi32(low, sixteen));
  words += sizeof(uint16_t) * static_cast<size_t>(std::popcount(uint32_t{low}));
  return _mm512_mask_mov_epi32(next, low, refilled);
}

}  // namespace

uint16_t* encode_wide(std::span<const Pair> pairs, const uint32_t* table, int precision, LaneStates& states,
                      uint16_t* end) {
  return gathers_are_fast() ? encode_rounds<true>(pairs, table, precision, states, end)
                            : encode_rounds<false>(pairs, table, precision, states, end);
}

LATHE_WIDE size_t decode_wide(const uint32_t* slots, const std::array<uint32_t, kContexts>& rows, LaneStates& states,
                              std::span<const std::byte>& words, const uint8_t* contexts, std::span<uint8_t> symbols) {
  static_assert(kContexts == kMostLanes);
  constexpr size_t kRoundBytes = sizeof(uint16_t) * kMostLanes;
  const SlotRows table{
      .slots = slots, .low = _mm512_loadu_si512(rows.data()), .high = _mm512_loadu_si512(rows.data() + kHalf)};
  __m512i low = _mm512_loadu_si512(states.data()), high = _mm512_loadu_si512(states.data() + kHalf);
  const std::byte *next = words.data(), *const end = next + words.size();
  size_t i = 0;
  for (; i + kMostLanes <= symbols.size() && static_cast<size_t>(end - next) >= kRoundBytes; i += kMostLanes) {
    low = decode_half(low, table, contexts + i, symbols.data() + i, next);
    high = decode_half(high, table, contexts + i + kHalf, symbols.data() + i + kHalf, next);
  }
  _mm512_storeu_si512(states.data(), low);
  _mm512_storeu_si512(states.data() + kHalf, high);
  words = words.subspan(static_cast<size_t>(next - words.data()));
  return i;
}

}  // namespace lathe::codec

#endif
