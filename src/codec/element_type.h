// Element types: how the codec reads a stretch of bytes, and a tile as stretches of one type each.
//
// Threads: values and pure functions.
// Format page: docs/formats/delta.md
#pragma once

#include <cstdint>

namespace lathe::codec {

// The numbers are those of the format. Types of 8 bytes are coded as 32-bit words.
enum class ElementType : uint8_t { kBytes = 0, kWord16 = 1, kWord32 = 2, kBFloat16 = 3, kFloat16 = 4, kFloat32 = 5 };

// Bytes.
constexpr uint64_t element_size(ElementType type) {
  switch (type) {
    case ElementType::kBytes:
      return 1;
    case ElementType::kWord16:
    case ElementType::kBFloat16:
    case ElementType::kFloat16:
      return 2;
    case ElementType::kWord32:
    case ElementType::kFloat32:
      return 4;
  }
  return 1;
}

// A stretch of one element type in a tile: whole elements, or kBytes for what the tile's edges cut off an element.
struct TilePart {
  ElementType type = ElementType::kBytes;
  uint64_t offset = 0;  // in the tile
  uint64_t size = 0;
  friend bool operator==(const TilePart&, const TilePart&) = default;
};

}  // namespace lathe::codec
