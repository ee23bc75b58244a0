// Elements as the codec sees them: ordinals whose difference is the number of representable values between two numbers,
// and the exponent that says how large such a step is.
//
// The total order of IEEE 754 (section 5.10) puts all bit patterns in a row: negative NaNs, -inf .. -0, +0 .. inf,
// NaNs. An ordinal is the place in that row, so one *step* is one unit in the last place wherever the number lies,
// across zero and powers of two, and the map is one to one: no pattern is special. Integers are their own ordinals.
// Steps wrap.
// Threads: pure functions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace lathe::codec {

template <class BitsType, int kMantissaBits>
struct FloatElement {
  using Bits = BitsType;
  static constexpr bool kFloat = true;
  static constexpr int kMantissa = kMantissaBits;
  static constexpr auto kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  static Bits ordinal(Bits bits) { return static_cast<Bits>(bits & kSign ? ~bits : bits | kSign); }
  static Bits from_ordinal(Bits ordinal) { return static_cast<Bits>(ordinal & kSign ? ordinal ^ kSign : ~ordinal); }
  // The number without its sign: exponent and mantissa.
  static Bits magnitude(Bits bits) { return static_cast<Bits>(bits & static_cast<Bits>(~kSign)); }
};

template <class BitsType>
struct IntegerElement {
  using Bits = BitsType;
  static constexpr bool kFloat = false;
  static constexpr int kMantissa = 0;
  static Bits ordinal(Bits bits) { return bits; }
  static Bits from_ordinal(Bits ordinal) { return ordinal; }
  static Bits magnitude(Bits) { return 0; }
};

using Byte = IntegerElement<uint8_t>;
using Word16 = IntegerElement<uint16_t>;
using Word32 = IntegerElement<uint32_t>;
using BFloat16 = FloatElement<uint16_t, 7>;
using Float16 = FloatElement<uint16_t, 10>;
using Float32 = FloatElement<uint32_t, 23>;

// 0, -1, 1, -2, 2 ... to 0, 1, 2, 3, 4 ..., and back.
template <class Bits>
constexpr Bits zigzag(Bits step) {
  using Signed = std::make_signed_t<Bits>;
  const auto sign = static_cast<Bits>(static_cast<Signed>(step) >> (8 * sizeof(Bits) - 1));
  return static_cast<Bits>(static_cast<Bits>(step << 1) ^ sign);
}
template <class Bits>
constexpr Bits unzigzag(Bits z) {
  return static_cast<Bits>((z >> 1) ^ static_cast<Bits>(-(z & 1)));
}

// Element i of bytes that need not be aligned.
template <class Bits>
Bits load(const std::byte* bytes, size_t i) {
  Bits value;
  std::memcpy(&value, bytes + i * sizeof(Bits), sizeof(Bits));
  return value;
}
template <class Bits>
void store(std::byte* bytes, size_t i, Bits value) {
  std::memcpy(bytes + i * sizeof(Bits), &value, sizeof(Bits));
}

}  // namespace lathe::codec
