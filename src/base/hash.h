// The two hashes of the checkpoint formats: XXH3-128 of a tile, BLAKE3 of a whole state.
//
// Why two: tile hashes cover every byte of the model at every sync, at memory speed, and guard against accidents. The
// root names a state, is compared between machines, and covers a few hundred kilobytes.
// Threads: pure functions; a Blake3 belongs to one thread.
// Format page: docs/formats/delta.md, "Hashes".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace lathe {

struct Hash128 {
  uint64_t low = 0, high = 0;
  friend auto operator<=>(const Hash128&, const Hash128&) = default;
};

inline constexpr uint64_t kTileBytes = uint64_t{2} << 20;
inline constexpr uint64_t kBlockBytes = 4096;  // what a tile's hash is made of, and what apply writes

// XXH3-128 of the XXH3-128s (low word first, little-endian) of the tile's 512 blocks of 4 KiB. A shorter tile is hashed
// as if zeros followed it. In two levels so that a GPU, or a reader without a streaming XXH3, hashes all blocks side by
// side.
Hash128 hash_tile(std::span<const std::byte> tile);

// hash_tile() of both, which are of equal length: memory delivers two streams at once faster than one after the other,
// and equal blocks are hashed once.
std::pair<Hash128, Hash128> hash_tiles(std::span<const std::byte> before, std::span<const std::byte> after);

// The default secret of XXH3, for code that computes the hash elsewhere (kernels/tile_hash.h).
std::array<std::byte, 192> hash_secret();

// XXH3-64 and XXH3-128 of plain bytes: the checksums inside delta files.
uint64_t checksum64(std::span<const std::byte> bytes);
Hash128 checksum128(std::span<const std::byte> bytes);

// checksum128 of bytes that come in pieces.
class Checksum128 {
 public:
  Checksum128();
  void update(std::span<const std::byte> bytes);
  Hash128 finish() const;

 private:
  struct Release {
    void operator()(void* state) const;
  };
  std::unique_ptr<void, Release> state_;
};

// A BLAKE3-256 digest.
struct Root {
  std::array<uint8_t, 32> bytes{};
  std::string hex() const;
  static Result<Root> from_hex(std::string_view hex);
  friend bool operator==(const Root&, const Root&) = default;
};

// BLAKE3 of bytes that come in pieces.
class Blake3 {
 public:
  Blake3();
  void update(std::span<const std::byte> bytes);
  Root finish() const;

 private:
  struct Release {
    void operator()(void* hasher) const;
  };
  std::unique_ptr<void, Release> hasher_;
};

}  // namespace lathe
