// The hash that a GPU computes, by four threads in turn, against the library's.
#include "kernels/tile_hash.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "base/hash.h"

namespace lathe::kernels::xxh3 {
namespace {

Keys keys() {
  const auto secret = hash_secret();
  return make_keys(reinterpret_cast<const unsigned char*>(secret.data()));
}

template <int kKib>
Pair hash(const std::vector<std::byte>& input) {
  const Keys k = keys();
  uint64_t low = 0, high = 0;
  for (int thread = 0; thread < kThreads; ++thread) {
    const Pair sum = accumulate<kKib>(thread, k, [&](int stripe) {
      Pair data;
      std::memcpy(&data, &input[static_cast<size_t>(stripe * kStripe + 16 * thread)], sizeof data);
      return data;
    });
    low += fold(sum, k.low, thread);
    high += fold(sum, k.high, thread);
  }
  return finish(low, high, input.size());
}

TEST(TileHash, FourThreadsFindTheLibrarysHash) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::byte> block(4096), hashes(8192);
    for (std::byte& b : block) b = round == 0 ? std::byte{0} : static_cast<std::byte>(random());
    for (std::byte& b : hashes) b = static_cast<std::byte>(random());
    const auto expected = checksum128(block), outer = checksum128(hashes);
    EXPECT_EQ(hash<4>(block).a, expected.low);
    EXPECT_EQ(hash<4>(block).b, expected.high);
    EXPECT_EQ(hash<8>(hashes).a, outer.low);
    EXPECT_EQ(hash<8>(hashes).b, outer.high);
  }
}

}  // namespace
}  // namespace lathe::kernels::xxh3
