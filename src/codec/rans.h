// The loops of the rANS coder for symbol streams (entropy.h): from pairs of context and symbol to words, and back.
//
// Element i belongs to lane i mod `lanes`; each lane has a state in [2^16, 2^32), and all share one sequence of 16-bit
// words. Where the CPU has AVX-512, 32 lanes are two vectors; the words are the same either way.
// Threads: pure functions.
// Format page: docs/formats/delta.md, "Symbol streams".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "codec/entropy.h"

namespace lathe::codec {

inline constexpr uint32_t kLowestState = 1U << 16;
inline constexpr int kSparsePrecision = 15, kDensePrecision = 12;
inline constexpr uint32_t kFewLanes = 4, kMostLanes = 32;
using LaneStates = std::array<uint32_t, kMostLanes>;

inline constexpr size_t kWordsBefore = 16;

// Codes `pairs`, all of which have a frequency in `model`, with 1, kFewLanes or kMostLanes lanes. Writes the words
// before `end`, at most one per pair, and returns where they begin; kWordsBefore words before that may be overwritten.
// `states` are what a decoder begins with.
uint16_t* rans_encode(const SymbolModel& model, std::span<const Pair> pairs, uint32_t lanes, LaneStates& states,
                      uint16_t* end);

// Fills symbols[i], given contexts[i], from `words`, of which an even number of bytes. False unless they are used up
// exactly and the states end where the encoder's began. `slots` is room that is worth keeping for the next call.
bool rans_decode(const SymbolModel& model, uint32_t lanes, LaneStates& states, std::span<const std::byte> words,
                 std::span<const uint8_t> contexts, std::span<uint8_t> symbols, std::vector<uint32_t>& slots);

}  // namespace lathe::codec
