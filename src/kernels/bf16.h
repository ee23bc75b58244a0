// bf16 as the upper half of an fp32 number.
#pragma once

#include <bit>
#include <cstdint>

namespace lathe::kernels {

inline float widen(uint16_t x) {
  return std::bit_cast<float>(uint32_t{x} << 16);
}
inline float widen(float x) {
  return x;
}

// Nearest, ties to even. NaN stays NaN.
inline uint16_t narrow(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const auto rounded = static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
  return (bits & 0x7FFFFFFFU) > 0x7F800000U ? uint16_t{0x7FC0} : rounded;
}

// x as bf16 would hold it.
inline float rounded(float x) {
  return widen(narrow(x));
}

}  // namespace lathe::kernels
