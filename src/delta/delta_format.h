// A delta file: the difference between two states of the same files, tile by tile, applicable in both directions.
//
// Why: a step of training moves nearly every 4 KiB of the weights, but each weight by few of its own units in the last
// place; coded as such steps, given the exponent of the old value, ten minutes of training are a few per cent of the
// model. Tiles that did not change cost nothing. Every tile names the hash of its bytes before and after, so applying
// one is idempotent and never lands on a wrong base:
//   hash == after: skip;  hash == before: decode, check, write;  else: stop and name the tile.
// Files keep name, size and layout across a delta; whatever else belongs to a version travels as an attachment.
//
// This header holds what the writer (delta_writer.h) and the reader (delta_reader.h) share.
// Threads: values.
// Format page: docs/formats/delta.md
#pragma once

#include <cstdint>
#include <string>

#include "base/hash.h"
#include "codec/tile_codec.h"
#include "delta/tile.h"

namespace lathe::delta {

struct DeltaTile {
  TileId id;
  codec::TileMode mode = codec::TileMode::kRaw;
  uint64_t offset = 0;        // of the payload in the delta file
  uint64_t payload_size = 0;  // bytes
  Hash128 before, after;      // hash_tile of the tile's bytes in either state
  uint64_t payload_checksum = 0;
};

struct DeltaAttachment {
  std::string name;
  uint64_t offset = 0;  // in the delta file
  uint64_t size = 0;
  Hash128 checksum;
};

struct DeltaInfo {
  int64_t from_version = 0, to_version = 0;
  int64_t time_ms = 0;  // when the new state was taken: milliseconds since 1970, UTC
  Root from_root, to_root;
};

}  // namespace lathe::delta

namespace lathe::delta::delta_format {

inline constexpr uint64_t kMagic = 0x746C644548'54414CULL;     // "LATHEdlt"
inline constexpr uint64_t kEndMagic = 0x646E654548'54414CULL;  // "LATHEend"
inline constexpr uint32_t kVersion = codec::kFormat,
                          kOldestVersion = codec::kOldestFormat;  // what is written; the oldest that is read
inline constexpr uint64_t kFooterSize = 128;
inline constexpr uint64_t kLeastTileEntry = 44;

}  // namespace lathe::delta::delta_format
