// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a counter-based generator.
//
// Why: random bits are a pure function of (key, counter), so an update is the same for any number of threads, any
// order, fused or not, on any device.
// Threads: pure functions.
#pragma once

#include <array>
#include <cstdint>

namespace lathe::kernels {

struct PhiloxKey {
  uint32_t k0 = 0, k1 = 0;
};

using PhiloxBlock = std::array<uint32_t, 4>;

inline PhiloxBlock philox(PhiloxKey key, PhiloxBlock c) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53U} * c[0], p1 = uint64_t{0xCD9E8D57U} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ key.k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ key.k1, static_cast<uint32_t>(p0)};
    key.k0 += 0x9E3779B9U;
    key.k1 += 0xBB67AE85U;
  }
  return c;
}

}  // namespace lathe::kernels
