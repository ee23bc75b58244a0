#include "base/hash.h"

#include <algorithm>
#include <cstring>

#define XXH_INLINE_ALL  // the vectorised loops in this file, and no library to link
#include <xxhash.h>

#include "hash_shim.h"

namespace lathe {
namespace {

constexpr size_t kBlocks = kTileBytes / kBlockBytes;

Hash128 from_xxh(XXH128_hash_t hash) {
  return {.low = hash.low64, .high = hash.high64};
}

Hash128 zero_block() {
  static const Hash128 hash = [] {
    const std::array<std::byte, kBlockBytes> zeros{};
    return checksum128(zeros);
  }();
  return hash;
}

// In memory as in the format: two little-endian words each.
using BlockHashes = std::array<Hash128, kBlocks>;

// The tile's hash, once `count` whole blocks have theirs.
Hash128 hash_of(BlockHashes& blocks, size_t count, std::span<const std::byte> tile) {
  if (const auto rest = tile.subspan(count * kBlockBytes); !rest.empty()) {
    std::array<std::byte, kBlockBytes> padded{};
    std::memcpy(padded.data(), rest.data(), rest.size());
    blocks[count++] = checksum128(padded);
  }
  std::fill(blocks.begin() + static_cast<ptrdiff_t>(count), blocks.end(), zero_block());
  return checksum128(std::as_bytes(std::span(blocks)));
}

}  // namespace

Hash128 hash_tile(std::span<const std::byte> tile) {
  LATHE_CHECK(tile.size() <= kTileBytes);
  BlockHashes blocks;
  size_t i = 0;
  for (; (i + 1) * kBlockBytes <= tile.size(); ++i) blocks[i] = checksum128(tile.subspan(i * kBlockBytes, kBlockBytes));
  return hash_of(blocks, i, tile);
}

std::pair<Hash128, Hash128> hash_tiles(std::span<const std::byte> before, std::span<const std::byte> after) {
  LATHE_CHECK(before.size() <= kTileBytes && after.size() == before.size());
  BlockHashes old_blocks, new_blocks;
  size_t i = 0;
  for (; (i + 1) * kBlockBytes <= before.size(); ++i) {
    const auto was = before.subspan(i * kBlockBytes, kBlockBytes), is = after.subspan(i * kBlockBytes, kBlockBytes);
    old_blocks[i] = checksum128(was);
    new_blocks[i] = std::memcmp(was.data(), is.data(), kBlockBytes) == 0 ? old_blocks[i] : checksum128(is);
  }
  return {hash_of(old_blocks, i, before), hash_of(new_blocks, i, after)};
}

std::array<std::byte, 192> hash_secret() {
  std::array<std::byte, 192> secret{};
  static_assert(secret.size() == XXH3_SECRET_DEFAULT_SIZE);
  XXH3_generateSecret_fromSeed(secret.data(), 0);
  return secret;
}

uint64_t checksum64(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

Hash128 checksum128(std::span<const std::byte> bytes) {
  return from_xxh(XXH3_128bits(bytes.data(), bytes.size()));
}

void Checksum128::Release::operator()(void* state) const {
  XXH3_freeState(static_cast<XXH3_state_t*>(state));
}

Checksum128::Checksum128() : state_(XXH3_createState()) {
  LATHE_CHECK(state_ != nullptr);
  XXH3_128bits_reset(static_cast<XXH3_state_t*>(state_.get()));
}

void Checksum128::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(static_cast<XXH3_state_t*>(state_.get()), bytes.data(), bytes.size());
}

Hash128 Checksum128::finish() const {
  return from_xxh(XXH3_128bits_digest(static_cast<const XXH3_state_t*>(state_.get())));
}

std::string Root::hex() const {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15U];
  }
  return text;
}

Result<Root> Root::from_hex(std::string_view hex) {
  Root root;
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
  if (hex.size() != 2 * root.bytes.size()) return invalid_argument("a root is 64 hexadecimal digits");
  for (size_t i = 0; i < root.bytes.size(); ++i) {
    const int high = digit(hex[2 * i]), low = digit(hex[2 * i + 1]);
    if (high < 0 || low < 0) return invalid_argument("a root is 64 hexadecimal digits");
    root.bytes[i] = static_cast<uint8_t>(16 * high + low);
  }
  return root;
}

void Blake3::Release::operator()(void* hasher) const {
  lathe_blake3_release(static_cast<lathe_blake3*>(hasher));
}

Blake3::Blake3() : hasher_(lathe_blake3_create()) {}

void Blake3::update(std::span<const std::byte> bytes) {
  lathe_blake3_update(static_cast<lathe_blake3*>(hasher_.get()), reinterpret_cast<const uint8_t*>(bytes.data()),
                      bytes.size());
}

Root Blake3::finish() const {
  Root root;
  lathe_blake3_finish(static_cast<const lathe_blake3*>(hasher_.get()), root.bytes.data());
  return root;
}

}  // namespace lathe
