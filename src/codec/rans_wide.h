// rans.h with 32 lanes in two AVX-512 vectors, where has_wide().
// Threads: pure functions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/rans.h"
#include "codec/wide.h"

namespace lathe::codec {

inline constexpr uint32_t kWideFrequencyShift = 16;  // an encoder's entry per pair: frequency << 16 | start

// As encode_lanes() in rans.cpp, for one whole round or more. May write kWordsBefore words before the result.
uint16_t* encode_wide(std::span<const Pair> pairs, const uint32_t* table, int precision, LaneStates& states,
                      uint16_t* end);

// Decodes rounds while `words` surely last, which move on; returns how many symbols that were. Tables as in SlotTable.
size_t decode_wide(const uint32_t* slots, const std::array<uint32_t, kContexts>& rows, LaneStates& states,
                   std::span<const std::byte>& words, const uint8_t* contexts, std::span<uint8_t> symbols);

#ifndef LATHE_HAS_WIDE
inline uint16_t* encode_wide(std::span<const Pair>, const uint32_t*, int, LaneStates&, uint16_t* end) {
  return end;
}
inline size_t decode_wide(const uint32_t*, const std::array<uint32_t, kContexts>&, LaneStates&,
                          std::span<const std::byte>&, const uint8_t*, std::span<uint8_t>) {
  return 0;
}
#endif

}  // namespace lathe::codec
