#include "kernels/rounding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

#include "kernels/bf16.h"
#include "kernels/clones.h"
#include "kernels/philox.h"

namespace lathe::kernels {
namespace {

constexpr int64_t kGroup = 512;   // elements that share 64 Philox blocks
constexpr int64_t kBlocks = kGroup / 8;

// Tags keep the streams of different uses apart.
constexpr uint32_t kRoundingTag = 0x5EED0001U, kNormalTag = 0x5EED0002U;

// The 64 blocks of group `group`, word by word, so that the loop runs over blocks and vectorises.
LATHE_CLONES void group_bits(uint32_t* __restrict out, uint64_t group, const Update& update) {
  uint32_t c0[kBlocks], c1[kBlocks], c2[kBlocks], c3[kBlocks];
  for (int64_t b = 0; b < kBlocks; ++b) {
    const uint64_t counter = group * kBlocks + static_cast<uint64_t>(b);
    c0[b] = static_cast<uint32_t>(counter);
    c1[b] = static_cast<uint32_t>(counter >> 32);
    c2[b] = update.update_index;
    c3[b] = kRoundingTag;
  }
  uint32_t k0 = update.seed, k1 = update.stream;
  for (int round = 0; round < 10; ++round) {
    for (int64_t b = 0; b < kBlocks; ++b) {
      const uint64_t p0 = uint64_t{0xD2511F53U} * c0[b], p1 = uint64_t{0xCD9E8D57U} * c2[b];
      c0[b] = static_cast<uint32_t>(p1 >> 32) ^ c1[b] ^ k0;
      c2[b] = static_cast<uint32_t>(p0 >> 32) ^ c3[b] ^ k1;
      c1[b] = static_cast<uint32_t>(p1);
      c3[b] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  std::copy_n(c0, kBlocks, out);
  std::copy_n(c1, kBlocks, out + kBlocks);
  std::copy_n(c2, kBlocks, out + 2 * kBlocks);
  std::copy_n(c3, kBlocks, out + 3 * kBlocks);
}

constexpr uint32_t kExponent = 0x7F800000U;

// Adds `noise` below the kept bits and truncates. The sum must not carry a finite number into infinity.
inline uint32_t round_with(uint32_t bits, uint32_t noise) {
  const uint32_t sum = bits + noise;
  const uint32_t kept = (sum & kExponent) == kExponent ? bits : sum;
  const bool nan = (bits & 0x7FFFFFFFU) > kExponent;
  return nan ? 0x7FC0U : kept >> 16;
}

constexpr int64_t kLanes = 32;

// Sums per lane: a single running sum would forbid vector code, since floating-point addition may not be reordered.
struct LaneSums {
  int32_t changed[kLanes] = {};
  float squared[kLanes] = {}, dot[kLanes] = {};
};

// w <- round(w - step u - decay w) for one element; `noise` is what round_with adds.
template <class U>
[[gnu::always_inline]] inline void update_element(uint16_t& w, U u, uint32_t noise, float step, float decay, int32_t& changed,
                                                  float& squared, float& dot) {
  const float before = widen(w);
  const float intended = -(step * widen(u) + decay * before);
  const auto after = static_cast<uint16_t>(round_with(std::bit_cast<uint32_t>(before + intended), noise));
  changed += after != w ? 1 : 0;
  squared += intended * intended;
  dot += intended * (widen(after) - before);
  w = after;
}

// n <= kGroup elements.
template <class U>
[[gnu::always_inline]] inline UpdateStats update_run(uint16_t* __restrict w, const U* __restrict u, const uint32_t* __restrict noise,
                                                     int64_t n, float step, float decay) {
  LaneSums sums;
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      update_element(w[i + l], u[i + l], noise[i + l], step, decay, sums.changed[l], sums.squared[l], sums.dot[l]);
    }
  }
  for (int64_t i = whole; i < n; ++i) {
    update_element(w[i], u[i], noise[i], step, decay, sums.changed[i - whole], sums.squared[i - whole], sums.dot[i - whole]);
  }
  UpdateStats stats{.elements = n};
  for (int64_t l = 0; l < kLanes; ++l) {
    stats.changed += sums.changed[l];
    stats.intended_squared += static_cast<double>(sums.squared[l]);
    stats.realised_dot += static_cast<double>(sums.dot[l]);
  }
  return stats;
}

LATHE_CLONES UpdateStats update_group(uint16_t* w, const float* u, const uint32_t* noise, int64_t n, float step, float decay) {
  return update_run(w, u, noise, n, step, decay);
}
LATHE_CLONES UpdateStats update_group(uint16_t* w, const uint16_t* u, const uint32_t* noise, int64_t n, float step, float decay) {
  return update_run(w, u, noise, n, step, decay);
}

// Nearest, ties to even, is "add 0x7FFF plus the lowest kept bit": the bit depends on the element, so it has its own loop.
template <class U>
UpdateStats update_nearest(uint16_t* w, const U* u, int64_t n, float step, float decay) {
  UpdateStats stats{.elements = n};
  for (int64_t i = 0; i < n; ++i) {
    const float before = widen(w[i]);
    const float intended = -(step * widen(u[i]) + decay * before);
    const auto bits = std::bit_cast<uint32_t>(before + intended);
    const auto after = static_cast<uint16_t>(round_with(bits, 0x7FFFU + ((bits >> 16) & 1U)));
    stats.changed += after != w[i] ? 1 : 0;
    stats.intended_squared += static_cast<double>(intended) * intended;
    stats.realised_dot += static_cast<double>(intended) * (widen(after) - before);
    w[i] = after;
  }
  return stats;
}

template <class U>
UpdateStats update_range(uint16_t* w, const U* u, int64_t first, int64_t n, const Update& update) {
  if (update.rounding == Rounding::kNearest) return update_nearest(w, u, n, update.step, update.decay);
  UpdateStats stats;
  uint32_t words[kGroup / 2], noise[kGroup];
  for (int64_t done = 0; done < n;) {
    const int64_t element = first + done, inside = element % kGroup;
    const int64_t count = std::min(kGroup - inside, n - done);
    group_bits(words, static_cast<uint64_t>(element / kGroup), update);
    for (int64_t i = 0; i < kGroup / 2; ++i) {
      noise[2 * i] = words[i] & 0xFFFFU;
      noise[2 * i + 1] = words[i] >> 16;
    }
    stats += update_group(w + done, u + done, noise + inside, count, update.step, update.decay);
    done += count;
  }
  return stats;
}

}  // namespace

UpdateStats update_bf16(uint16_t* w, const float* u, int64_t first, int64_t n, const Update& update) {
  return update_range(w, u, first, n, update);
}
UpdateStats update_bf16(uint16_t* w, const uint16_t* u_bf16, int64_t first, int64_t n, const Update& update) {
  return update_range(w, u_bf16, first, n, update);
}

UpdateStats update_fp32(float* w, const float* u, int64_t n, const Update& update) {
  UpdateStats stats{.elements = n};
  for (int64_t i = 0; i < n; ++i) {
    const float before = w[i];
    const float intended = -(update.step * u[i] + update.decay * before);
    w[i] = before + intended;
    stats.changed += w[i] != before ? 1 : 0;
    stats.intended_squared += static_cast<double>(intended) * intended;
    stats.realised_dot += static_cast<double>(intended) * (w[i] - before);
  }
  return stats;
}

void normal_numbers(float* out, int64_t n, uint32_t seed, uint32_t stream, uint32_t epoch) {
  constexpr double kTo01 = 1.0 / 4294967296.0;
  for (int64_t b = 0; 4 * b < n; ++b) {
    const auto counter = static_cast<uint64_t>(b);
    const PhiloxBlock bits =
        philox({seed, stream}, {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), epoch, kNormalTag});
    for (int64_t pair = 0; pair < 2; ++pair) {
      // Half a unit keeps the logarithm finite.
      const double radius = std::sqrt(-2 * std::log((bits[2 * pair] + 0.5) * kTo01));
      const double angle = 2 * std::numbers::pi * (bits[2 * pair + 1] + 0.5) * kTo01;
      const int64_t i = 4 * b + 2 * pair;
      if (i < n) out[i] = static_cast<float>(radius * std::cos(angle));
      if (i + 1 < n) out[i + 1] = static_cast<float>(radius * std::sin(angle));
    }
  }
}

}  // namespace lathe::kernels
