// Reading and writing little-endian binary formats piece by piece.
//
// A reader is a span that shrinks from the front; every take says kCorruption when the data end too early, so a length
// that lies can never be followed.
// Threads: pure functions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lathe::codec {

static_assert(std::endian::native == std::endian::little);

template <class Value>
void append(std::vector<std::byte>& out, const Value& value) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

inline void append_bytes(std::vector<std::byte>& out, std::span<const std::byte> bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

// u32 length, then the text.
inline void append_text(std::vector<std::byte>& out, std::string_view text) {
  append(out, static_cast<uint32_t>(text.size()));
  append_bytes(out, std::as_bytes(std::span(text)));
}

// LEB128, below 2^56: seven bits per byte, the lowest first, the top bit set on all but the last.
inline void append_varint(std::vector<std::byte>& out, uint64_t value) {
  for (; value >= 128; value >>= 7) append(out, static_cast<uint8_t>(value | 128U));
  append(out, static_cast<uint8_t>(value));
}

inline Result<std::span<const std::byte>> take_bytes(std::span<const std::byte>& in, uint64_t count) {
  if (in.size() < count) return corruption("the data end too early");
  const auto bytes = in.first(count);
  in = in.subspan(count);
  return bytes;
}

template <class Value>
Result<Value> take(std::span<const std::byte>& in) {
  const auto bytes = LATHE_TRY(take_bytes(in, sizeof(Value)));
  Value value;
  std::memcpy(&value, bytes.data(), sizeof(Value));
  return value;
}

inline Result<std::string_view> take_text(std::span<const std::byte>& in) {
  const auto length = LATHE_TRY(take<uint32_t>(in));
  const auto bytes = LATHE_TRY(take_bytes(in, length));
  return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

inline Result<uint64_t> take_varint(std::span<const std::byte>& in) {
  uint64_t value = 0;
  for (int shift = 0; shift < 56; shift += 7) {
    const auto byte = LATHE_TRY(take<uint8_t>(in));
    value |= uint64_t{byte & 127U} << shift;
    if (byte < 128) return value;
  }
  return corruption("a number has too many bytes");
}

}  // namespace lathe::codec
