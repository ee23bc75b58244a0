#include <algorithm>

#include "kernels/cuda_common.cuh"
#include "kernels/cuda_update.h"

namespace lathe::kernels::cuda {
namespace {

constexpr int kGroup = 512;  // elements that share 64 Philox blocks: kernels/rounding.h
constexpr int kBlocks = kGroup / 8;
constexpr int kThreads = 256, kGroupsPerBlock = kThreads / kWarp;
constexpr int kRun = 8;  // consecutive elements of one thread: 16 bytes of bf16
constexpr uint32_t kRoundingTag = 0x5EED0001U;
constexpr uint32_t kExponent = 0x7F800000U;

// Philox4x32-10 (kernels/philox.h).
__device__ __forceinline__ uint4 philox(uint2 key, uint4 c) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53U, c.x), low0 = 0xD2511F53U * c.x;
    const uint32_t high1 = __umulhi(0xCD9E8D57U, c.z), low1 = 0xCD9E8D57U * c.z;
    c = make_uint4(high1 ^ c.y ^ key.x, low1, high0 ^ c.w ^ key.y, low0);
    key.x += 0x9E3779B9U;
    key.y += 0xBB67AE85U;
  }
  return c;
}

// Element e of the group finds its 16 bits at noise[e]. A lane makes blocks 2 lane and 2 lane + 1, whose words lie side
// by side there.
__device__ __forceinline__ void group_noise(uint32_t* noise, int64_t group, const Update& update, int lane) {
  const auto counter = static_cast<uint64_t>(group) * kBlocks + 2 * lane;
  const uint2 key = make_uint2(update.seed, update.stream);
  const auto high = static_cast<uint32_t>(counter >> 32);  // an even counter and its successor share it
  const uint4 even = philox(key, make_uint4(static_cast<uint32_t>(counter), high, update.update_index, kRoundingTag));
  const uint4 odd =
      philox(key, make_uint4(static_cast<uint32_t>(counter) + 1, high, update.update_index, kRoundingTag));
  const uint32_t evens[4] = {even.x, even.y, even.z, even.w}, odds[4] = {odd.x, odd.y, odd.z, odd.w};
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    noise[word * kBlocks / 2 + lane] = __byte_perm(evens[word], odds[word], 0x5410);               // low halves
    noise[kGroup / 4 + word * kBlocks / 2 + lane] = __byte_perm(evens[word], odds[word], 0x7632);  // high halves
  }
}

// Adds `noise` below the kept bits and truncates, without carrying a finite number into infinity.
__device__ __forceinline__ uint16_t round_with(uint32_t bits, uint32_t noise) {
  const uint32_t sum = bits + noise;
  const uint32_t kept = (sum & kExponent) == kExponent ? bits : sum;
  const bool nan = (bits & 0x7FFFFFFFU) > kExponent;
  return static_cast<uint16_t>(nan ? 0x7FC0U : kept >> 16);
}

__device__ __forceinline__ float widen(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
using cuda::widen;

// What becomes of a sum: of W's type.
__device__ __forceinline__ void settle(float x, uint32_t, bool, float& w) {
  w = x;
}
__device__ __forceinline__ void settle(float x, uint32_t noise, bool nearest, uint16_t& w) {
  const uint32_t bits = __float_as_uint(x);
  w = round_with(bits, nearest ? 0x7FFFU + ((bits >> 16) & 1U) : noise);
}

struct Sums {
  int changed = 0;
  float squared = 0, dot = 0;
};

template <class W>
__device__ __forceinline__ void update_element(W& w, float u, uint32_t noise, const Update& update, Sums& sums) {
  const float before = widen(w);
  const float intended = -__fadd_rn(__fmul_rn(update.step, u), __fmul_rn(update.decay, before));
  settle(__fadd_rn(before, intended), noise, update.rounding == Rounding::kNearest, w);
  const float after = widen(w);
  sums.changed += __float_as_uint(after) != __float_as_uint(before) ? 1 : 0;
  sums.squared += intended * intended;
  sums.dot += intended * (after - before);
}

__device__ __forceinline__ float scaled(float u, int64_t element, const ChannelScale& channels) {
  if (!channels.scale) return u;
  const int64_t channel = channels.by_row ? element / channels.columns : element % channels.columns;
  return __fmul_rn(u, channels.scale[channel]);
}

// The same of a run of elements that lie in one row.
__device__ __forceinline__ void scale_run(float* u, int64_t element, const ChannelScale& channels) {
  if (!channels.scale) return;
  const int64_t row = element / channels.columns, column = element - row * channels.columns;
#pragma unroll
  for (int i = 0; i < kRun; ++i) u[i] = __fmul_rn(u[i], channels.scale[channels.by_row ? row : column + i]);
}

// Writes a launch's sums to the block's row.
__device__ __forceinline__ void write_statistics(const Sums& sums, double* statistics) {
  __shared__ double scratch[kThreads / kWarp];
  const double changed = block_sum<kThreads>(static_cast<double>(sums.changed), scratch);
  const double squared = block_sum<kThreads>(static_cast<double>(sums.squared), scratch);
  const double dot = block_sum<kThreads>(static_cast<double>(sums.dot), scratch);
  if (threadIdx.x != 0) return;
  double* row = statistics + static_cast<int64_t>(blockIdx.x) * kStatisticsColumns;
  row[0] = changed;
  row[1] = squared;
  row[2] = dot;
}

// kVector: runs are aligned in w and u, and channels do not change inside one.
template <class W, class U, bool kVector>
__global__ void __launch_bounds__(kThreads) update_groups(W* w, const U* u, int64_t first, int64_t n, Update update,
                                                          ChannelScale channels, double* statistics) {
  __shared__ uint32_t noise_of[kGroupsPerBlock][kGroup / 2];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  uint32_t* noise = noise_of[warp];
  const auto* halves = reinterpret_cast<const uint16_t*>(noise);
  const bool random = sizeof(W) == 2 && update.rounding == Rounding::kStochastic;
  Sums sums;
  const int64_t begin_group = first / kGroup, groups = (first + n + kGroup - 1) / kGroup - begin_group;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * kGroupsPerBlock + warp; g < groups;
       g += static_cast<int64_t>(gridDim.x) * kGroupsPerBlock) {
    const int64_t group = begin_group + g;
    if (random) {
      __syncwarp();
      group_noise(noise, group, update, lane);
      __syncwarp();
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int inside = half * kGroup / 2 + lane * kRun;
      const int64_t at = group * kGroup + inside - first;  // of the run, in w and u
      if (kVector && at >= 0 && at + kRun <= n) {
        Pack<W, kRun> weights = load<W, kRun>(w + at);
        const Pack<U, kRun> updates = load<U, kRun>(u + at);
        float wide[kRun];
#pragma unroll
        for (int i = 0; i < kRun; ++i) wide[i] = widen(updates.at[i]);
        scale_run(wide, at, channels);
#pragma unroll
        for (int i = 0; i < kRun; ++i)
          update_element(weights.at[i], wide[i], random ? halves[inside + i] : 0, update, sums);
        store(w + at, weights);
      } else {
        for (int i = 0; i < kRun; ++i) {
          if (at + i < 0 || at + i >= n) continue;
          update_element(w[at + i], scaled(widen(u[at + i]), at + i, channels), random ? halves[inside + i] : 0, update,
                         sums);
        }
      }
    }
  }
  write_statistics(sums, statistics);
}

__global__ void __launch_bounds__(kThreads) adam_elements(float* g, float* m, float* v, int64_t n, AdamCoefficients k) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    // Each product and sum rounded by itself, as on the CPU.
    m[i] = __fadd_rn(__fmul_rn(k.beta1, m[i]), __fmul_rn(1 - k.beta1, g[i]));
    v[i] = __fadd_rn(__fmul_rn(k.beta2, v[i]), __fmul_rn(__fmul_rn(1 - k.beta2, g[i]), g[i]));
    g[i] = __fdiv_rn(__fmul_rn(k.first, m[i]), __fadd_rn(__fsqrt_rn(__fmul_rn(k.second, v[i])), k.epsilon));
  }
}

__global__ void __launch_bounds__(kThreads)
    moment_elements(const float* r, const float* last_m, const float* last_v, float* m, float* v, int64_t n,
                    AdamCoefficients k, double* sums) {
  double direction = 0, squared = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const float x = r[i];
    m[i] = (last_m ? k.beta1 * last_m[i] : 0.0F) + (1 - k.beta1) * x;
    v[i] = (last_v ? k.beta2 * last_v[i] : 0.0F) + (1 - k.beta2) * x * x;
    const float d = k.first * m[i] / (sqrtf(k.second * v[i]) + k.epsilon);
    direction += static_cast<double>(d) * d;
    squared += static_cast<double>(x) * x;
  }
  __shared__ double scratch[kThreads / kWarp];
  direction = block_sum<kThreads>(direction, scratch);
  squared = block_sum<kThreads>(squared, scratch);
  if (threadIdx.x != 0) return;
  sums[2 * blockIdx.x] = direction;
  sums[2 * blockIdx.x + 1] = squared;
}

bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <class W, class U>
void launch(W* w, const U* u, int64_t first, int64_t n, const Update& update, const ChannelScale& channels,
            double* statistics, Stream stream) {
  if (n == 0) return;
  const int64_t groups = (first + n + kGroup - 1) / kGroup - first / kGroup;
  const auto grid =
      static_cast<unsigned>(std::min<int64_t>((groups + kGroupsPerBlock - 1) / kGroupsPerBlock, kStatisticsRows));
  // Runs begin at multiples of kRun of the whole tensor.
  const auto lead = static_cast<int64_t>((kRun - first % kRun) % kRun);
  const bool vector = aligned(w + lead, kRun * sizeof(W)) && aligned(u + lead, kRun * sizeof(U)) &&
                      (!channels.scale || (channels.columns % kRun == 0 && first % kRun == 0));
  const auto kernel = vector ? update_groups<W, U, true> : update_groups<W, U, false>;
  kernel<<<grid, kThreads, 0, stream>>>(w, u, first, n, update, channels, statistics);
}

}  // namespace

void update_bf16(uint16_t* w, const float* u, int64_t first, int64_t n, const Update& update,
                 const ChannelScale& channels, double* statistics, Stream stream) {
  launch(w, u, first, n, update, channels, statistics, stream);
}
void update_bf16(uint16_t* w, const uint16_t* u_bf16, int64_t first, int64_t n, const Update& update,
                 const ChannelScale& channels, double* statistics, Stream stream) {
  launch(w, u_bf16, first, n, update, channels, statistics, stream);
}
void update_fp32(float* w, const float* u, int64_t first, int64_t n, const Update& update, const ChannelScale& channels,
                 double* statistics, Stream stream) {
  launch(w, u, first, n, update, channels, statistics, stream);
}

void adam_direction(float* g, float* m, float* v, int64_t n, const AdamCoefficients& coefficients, Stream stream) {
  if (n == 0) return;
  const auto grid = static_cast<unsigned>(std::min<int64_t>((n + kThreads - 1) / kThreads, 16 * kMaxGrid));
  adam_elements<<<grid, kThreads, 0, stream>>>(g, m, v, n, coefficients);
}

void apollo_moments(const float* r, const float* last_m, const float* last_v, float* m, float* v, int64_t n,
                    const AdamCoefficients& coefficients, double* sums, Stream stream) {
  moment_elements<<<kNormRows, kThreads, 0, stream>>>(r, last_m, last_v, m, v, n, coefficients, sums);
}

}  // namespace lathe::kernels::cuda
