#include "kernels/rounding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

#include "base/clones.h"
#include "kernels/bf16.h"
#include "kernels/philox.h"

namespace lathe::kernels {
namespace {

constexpr int64_t kGroup = 512;  // elements that share 64 Philox blocks
constexpr int64_t kBlocks = kGroup / 8;

// Tags keep the streams of different uses apart.
constexpr uint32_t kRoundingTag = 0x5EED0001U, kNormalTag = 0x5EED0002U;

// The random halves of group `group`, widened: noise[e] belongs to element e of the group. Word by word, so that the
// loops run over blocks and vectorise.
LATHE_CLONES void group_noise(uint32_t* __restrict noise, uint64_t group, const Update& update) {
  uint32_t words[4][kBlocks];
  auto& [c0, c1, c2, c3] = words;
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
  for (int64_t word = 0; word < 4; ++word) {
    for (int64_t b = 0; b < kBlocks; ++b) {
      noise[word * kBlocks + b] = words[word][b] & 0xFFFFU;
      noise[kGroup / 2 + word * kBlocks + b] = words[word][b] >> 16;
    }
  }
}

constexpr uint32_t kExponent = 0x7F800000U;

// Adds `noise` below the kept bits and truncates. The sum must not carry a finite number into infinity.
[[gnu::always_inline]] inline uint16_t round_with(uint32_t bits, uint32_t noise) {
  const uint32_t sum = bits + noise;
  const uint32_t kept = (sum & kExponent) == kExponent ? bits : sum;
  const bool nan = (bits & 0x7FFFFFFFU) > kExponent;
  return static_cast<uint16_t>(nan ? 0x7FC0U : kept >> 16);
}

// What becomes of the i-th sum of a run.
struct RoundStochastic {
  const uint32_t* __restrict noise;
  [[gnu::always_inline]] uint16_t operator()(float x, int64_t i) const {
    return round_with(std::bit_cast<uint32_t>(x), noise[i]);
  }
};
struct RoundNearest {  // ties to even
  [[gnu::always_inline]] uint16_t operator()(float x, int64_t) const {
    const auto bits = std::bit_cast<uint32_t>(x);
    return round_with(bits, 0x7FFFU + ((bits >> 16) & 1U));
  }
};
struct Keep {
  [[gnu::always_inline]] float operator()(float x, int64_t) const { return x; }
};

constexpr int64_t kLanes = 32;

// Sums per lane: a single running sum would forbid vector code, since floating-point addition may not be reordered.
struct LaneSums {
  int32_t changed[kLanes] = {};
  float squared[kLanes] = {}, dot[kLanes] = {};

  // Pairwise, which is also what vector code likes.
  [[gnu::always_inline]] UpdateStats total(int64_t elements) {
    for (int64_t width = kLanes / 2; width > 0; width /= 2) {
      for (int64_t l = 0; l < width; ++l) {
        changed[l] += changed[l + width];
        squared[l] += squared[l + width];
        dot[l] += dot[l + width];
      }
    }
    return {.elements = elements, .changed = changed[0], .intended_squared = squared[0], .realised_dot = dot[0]};
  }
};

// change(i) returns the intended change of element i, and what it was before and after. For n <= kGroup elements.
struct Change {
  float intended, before, after;
};
template <class Work>
[[gnu::always_inline]] inline UpdateStats for_lanes(int64_t n, Work change) {
  LaneSums sums;
  const auto add = [&](int64_t i, int64_t lane) __attribute__((always_inline)) {
    const auto [intended, before, after] = change(i);
    sums.changed[lane] += std::bit_cast<int32_t>(after) != std::bit_cast<int32_t>(before) ? 1 : 0;
    sums.squared[lane] += intended * intended;
    sums.dot[lane] += intended * (after - before);
  };
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (int64_t i = whole; i < n; ++i) add(i, i - whole);
  return sums.total(n);
}

// w <- round(w - step u - decay w).
template <class W, class U, class Round>
[[gnu::always_inline]] inline UpdateStats update_run(W* __restrict w, const U* __restrict u, int64_t n, float step,
                                                     float decay, Round round) {
  return for_lanes(
      n, [=](int64_t i) __attribute__((always_inline)) {
        const float before = widen(w[i]);
        const float intended = -(step * widen(u[i]) + decay * before);
        w[i] = round(before + intended, i);
        return Change{intended, before, widen(w[i])};
      });
}

// The same of the shadow; w <- nearest(shadow).
template <class U>
[[gnu::always_inline]] inline UpdateStats shadow_run(uint16_t* __restrict w, float* __restrict shadow,
                                                     const U* __restrict u, int64_t n, float step, float decay) {
  const RoundNearest nearest;
  return for_lanes(
      n, [=](int64_t i) __attribute__((always_inline)) {
        const float before = widen(w[i]);
        const float exact = nearest(shadow[i], i) == w[i] ? shadow[i] : before;
        const float intended = -(step * widen(u[i]) + decay * exact);
        shadow[i] = exact + intended;
        w[i] = nearest(shadow[i], i);
        return Change{intended, before, widen(w[i])};
      });
}

// One clone each: attributes of this kind do not go on templates.
LATHE_CLONES UpdateStats run(uint16_t* w, const float* u, int64_t n, float step, float decay, RoundStochastic round) {
  return update_run(w, u, n, step, decay, round);
}
LATHE_CLONES UpdateStats run(uint16_t* w, const uint16_t* u, int64_t n, float step, float decay,
                             RoundStochastic round) {
  return update_run(w, u, n, step, decay, round);
}
LATHE_CLONES UpdateStats run(uint16_t* w, const float* u, int64_t n, float step, float decay, RoundNearest round) {
  return update_run(w, u, n, step, decay, round);
}
LATHE_CLONES UpdateStats run(uint16_t* w, const uint16_t* u, int64_t n, float step, float decay, RoundNearest round) {
  return update_run(w, u, n, step, decay, round);
}
LATHE_CLONES UpdateStats run(float* w, const float* u, int64_t n, float step, float decay, Keep keep) {
  return update_run(w, u, n, step, decay, keep);
}

LATHE_CLONES UpdateStats run(uint16_t* w, float* shadow, const float* u, int64_t n, float step, float decay) {
  return shadow_run(w, shadow, u, n, step, decay);
}
LATHE_CLONES UpdateStats run(uint16_t* w, float* shadow, const uint16_t* u, int64_t n, float step, float decay) {
  return shadow_run(w, shadow, u, n, step, decay);
}

// Walks elements first .. first + n - 1 group by group.
template <class Work>
UpdateStats for_groups(int64_t first, int64_t n, Work&& work) {
  UpdateStats stats;
  for (int64_t done = 0; done < n;) {
    const int64_t inside = (first + done) % kGroup, count = std::min(kGroup - inside, n - done);
    stats += work(done, (first + done) / kGroup, inside, count);
    done += count;
  }
  return stats;
}

template <class U>
UpdateStats update_range(uint16_t* w, const U* u, int64_t first, int64_t n, const Update& update) {
  uint32_t noise[kGroup];
  return for_groups(first, n, [&](int64_t at, int64_t group, int64_t inside, int64_t count) {
    if (update.rounding == Rounding::kNearest)
      return run(w + at, u + at, count, update.step, update.decay, RoundNearest{});
    group_noise(noise, static_cast<uint64_t>(group), update);
    return run(w + at, u + at, count, update.step, update.decay, RoundStochastic{noise + inside});
  });
}

}  // namespace

UpdateStats update_bf16(uint16_t* w, const float* u, int64_t first, int64_t n, const Update& update) {
  return update_range(w, u, first, n, update);
}
UpdateStats update_bf16(uint16_t* w, const uint16_t* u_bf16, int64_t first, int64_t n, const Update& update) {
  return update_range(w, u_bf16, first, n, update);
}

UpdateStats update_shadow(uint16_t* w, float* shadow, const float* u, int64_t n, const Update& update) {
  return for_groups(0, n, [&](int64_t at, int64_t, int64_t, int64_t count) {
    return run(w + at, shadow + at, u + at, count, update.step, update.decay);
  });
}
UpdateStats update_shadow(uint16_t* w, float* shadow, const uint16_t* u_bf16, int64_t n, const Update& update) {
  return for_groups(0, n, [&](int64_t at, int64_t, int64_t, int64_t count) {
    return run(w + at, shadow + at, u_bf16 + at, count, update.step, update.decay);
  });
}

UpdateStats update_fp32(float* w, const float* u, int64_t n, const Update& update) {
  return for_groups(0, n, [&](int64_t at, int64_t, int64_t, int64_t count) {
    return run(w + at, u + at, count, update.step, update.decay, Keep{});
  });
}

void normal_numbers(float* out, int64_t n, uint32_t seed, uint32_t stream, uint32_t epoch) {
  constexpr double kTo01 = 1.0 / 4294967296.0;
  for (int64_t b = 0; 4 * b < n; ++b) {
    const auto counter = static_cast<uint64_t>(b);
    const PhiloxBlock bits = philox(
        {seed, stream}, {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), epoch, kNormalTag});
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
