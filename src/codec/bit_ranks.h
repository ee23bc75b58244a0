// Lists of elements among those of one kind, as gaps: how many of the kind lie between two of the list.
//
// Elements of a kind are bits, 64 to a word, so that a gap is passed by counting bits instead of looking at elements.
// Compiled for several instruction sets.
// Threads: pure functions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace lathe::codec {

constexpr size_t words_for(size_t bits) {
  return (bits + 63) / 64;
}

// Calls work(i) for every bit i that is set, ascending.
template <class Work>
[[gnu::always_inline]] inline void each_bit(std::span<const uint64_t> words, Work&& work) {
  for (size_t w = 0; w < words.size(); ++w) {
    for (uint64_t left = words[w]; left != 0; left &= left - 1)
      work(64 * w + static_cast<size_t>(std::countr_zero(left)));
  }
}

// counts[i]: how many bits are set in words [i * stretch, (i + 1) * stretch); the last stretch may be shorter.
void count_stretches(std::span<const uint64_t> words, size_t stretch, uint16_t* counts);

// Bit i tells whether values[i] is 16 or more, or not 0; bits past the values are 0.
void sixteen_bits(std::span<const uint8_t> values, uint64_t* words);
void nonzero_bits(std::span<const uint8_t> values, uint64_t* words);

// Bit i of the words, which are words_for(values.size()), tells whether values[i] is `wanted`; bits past them are 0.
void equal_bits(std::span<const uint8_t> values, uint8_t wanted, uint64_t* words);

// gaps[k] of elements[k], which ascend: the bits set in both `kind` and `counted` between the element before (or the
// begin) and it. `ranks` is room, one per word.
void gaps_of(std::span<const uint64_t> kind, std::span<const uint64_t> counted, std::span<const uint32_t> elements,
             std::span<uint32_t> ranks, uint32_t* gaps);

// The other way, where all of the kind count but the elements themselves, which are of it. Returns how many there are:
// fewer than gaps if the kind ends before.
size_t place(std::span<const uint64_t> kind, std::span<const uint32_t> gaps, uint32_t* elements);

}  // namespace lathe::codec
