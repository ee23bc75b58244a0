// XXH3-128 of a multiple of 1 KiB, cut so that a GPU computes it: four threads per input, each with two of the eight
// accumulators, 16 bytes of each stripe of 64. The same functions run on the CPU, where tile_hash_test holds them to
// the library's.
//
// The hash of a tile is made of such hashes: docs/formats/delta.md, "Hashes".
// Threads: pure functions.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define LATHE_CPU_AND_GPU __host__ __device__ __forceinline__
#else
#define LATHE_CPU_AND_GPU inline
#endif

namespace lathe::kernels::xxh3 {

constexpr uint64_t kPrime32A = 0x9E3779B1U, kPrime32B = 0x85EBCA77U, kPrime32C = 0xC2B2AE3DU;
constexpr uint64_t kPrime64A = 0x9E3779B185EBCA87U, kPrime64B = 0xC2B2AE3D27D4EB4FU, kPrime64C = 0x165667B19E3779F9U,
                   kPrime64D = 0x85EBCA77C2B2AE63U, kPrime64E = 0x27D4EB2F165667C5U;
constexpr int kStripe = 64, kStripesPerKib = 16, kSecretBytes = 192;
constexpr int kThreads = 4;  // that share an input

// Words of the secret as the hash meets them: per stripe at multiples of 8 bytes, for the input's last stripe and for
// the two results at odd places.
struct Keys {
  uint64_t stripe[kSecretBytes / 8], last[8], low[8], high[8];
};

inline Keys make_keys(const unsigned char* secret) {
  Keys keys;
  std::memcpy(keys.stripe, secret, sizeof keys.stripe);
  std::memcpy(keys.last, secret + kSecretBytes - 64 - 7, sizeof keys.last);
  std::memcpy(keys.low, secret + 11, sizeof keys.low);
  std::memcpy(keys.high, secret + kSecretBytes - 64 - 11, sizeof keys.high);
  return keys;
}

// Two 64-bit words: of the input, or a thread's two accumulators.
struct Pair {
  uint64_t a, b;
};

LATHE_CPU_AND_GPU Pair start(int thread) {
  if (thread == 0) return {kPrime32C, kPrime64A};
  if (thread == 1) return {kPrime64B, kPrime64C};
  if (thread == 2) return {kPrime64D, kPrime32B};
  return {kPrime64E, kPrime32A};
}

LATHE_CPU_AND_GPU uint64_t low_times_high(uint64_t x) {
  return (x & 0xFFFFFFFFU) * (x >> 32);
}

LATHE_CPU_AND_GPU void add(Pair& sum, Pair data, const uint64_t* keys) {
  sum.a += data.b + low_times_high(data.a ^ keys[0]);
  sum.b += data.a + low_times_high(data.b ^ keys[1]);
}

LATHE_CPU_AND_GPU void scramble(Pair& sum, const uint64_t* keys) {
  sum.a = (sum.a ^ sum.a >> 47 ^ keys[0]) * kPrime32A;
  sum.b = (sum.b ^ sum.b >> 47 ^ keys[1]) * kPrime32A;
}

// A thread's accumulators after an input of `kKib` KiB; load(stripe) gives its 16 bytes of one.
template <int kKib, class Load>
LATHE_CPU_AND_GPU Pair accumulate(int thread, const Keys& keys, Load&& load) {
  Pair sum = start(thread);
  for (int kib = 0; kib < kKib; ++kib) {
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int i = 0; i < kStripesPerKib; ++i) {
      const bool last = kib == kKib - 1 && i == kStripesPerKib - 1;
      add(sum, load(kib * kStripesPerKib + i), (last ? keys.last : keys.stripe + i) + 2 * thread);
    }
    if (kib < kKib - 1) scramble(sum, keys.stripe + kSecretBytes / 8 - 8 + 2 * thread);
  }
  return sum;
}

// A thread's share of one of the results; the shares of the four are added.
LATHE_CPU_AND_GPU uint64_t fold(Pair sum, const uint64_t* keys, int thread) {
  const uint64_t x = sum.a ^ keys[2 * thread], y = sum.b ^ keys[2 * thread + 1];
#ifdef __CUDA_ARCH__
  return x * y ^ __umul64hi(x, y);
#else
  __extension__ using Product = unsigned __int128;
  const Product product = static_cast<Product>(x) * y;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
#endif
}

LATHE_CPU_AND_GPU uint64_t avalanche(uint64_t h) {
  h = (h ^ h >> 37) * 0x165667919E3779F9U;
  return h ^ h >> 32;
}

// The low and the high word of the hash from the sums of the shares.
LATHE_CPU_AND_GPU Pair finish(uint64_t low_shares, uint64_t high_shares, uint64_t bytes) {
  return {avalanche(bytes * kPrime64A + low_shares), avalanche(~(bytes * kPrime64B) + high_shares)};
}

}  // namespace lathe::kernels::xxh3
