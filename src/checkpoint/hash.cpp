#include "checkpoint/hash.h"

#include <algorithm>
#include <cstring>

#define XXH_INLINE_ALL  // the vectorised loops in this file, and no library to link
#include <xxhash.h>

#include "hash_shim.h"

namespace lathe::checkpoint {
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

}  // namespace

Hash128 hash_tile(std::span<const std::byte> tile) {
  LATHE_CHECK(tile.size() <= kTileBytes);
  std::array<Hash128, kBlocks> blocks;  // in memory as in the format: two little-endian words
  size_t count = tile.size() / kBlockBytes;
  for (size_t i = 0; i < count; ++i) blocks[i] = checksum128(tile.subspan(i * kBlockBytes, kBlockBytes));
  if (const auto rest = tile.subspan(count * kBlockBytes); !rest.empty()) {
    std::array<std::byte, kBlockBytes> padded{};
    std::memcpy(padded.data(), rest.data(), rest.size());
    blocks[count++] = checksum128(padded);
  }
  std::fill(blocks.begin() + static_cast<ptrdiff_t>(count), blocks.end(), zero_block());
  return checksum128(std::as_bytes(std::span(blocks)));
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

}  // namespace lathe::checkpoint
