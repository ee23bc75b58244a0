// The gradients of the gated delta rule's inputs, all chunks at once, from what both walks left.
//
// With X and dS of the backward walk, S_0 and D of the forward walk, L_ij = e^{G_i - G_j}, and row dots written (a, b):
//
//   P = tril(dO Dᵀ) ∘ L     Y = stril(X Dᵀ) ∘ L     Z = -(β Y + (β Y)ᵀ)
//   dQ = e^G dO S_0ᵀ + P K     dK = e^{Γ - G} D dSᵀ - β e^G X S_0ᵀ + Pᵀ Q + Z K     dV = β X
//   dβ = (X, V) - e^G (X S_0ᵀ, K) - (Y, K Kᵀ)
//
// and dg gathers every exponent that it is part of (model/delta_rule.cpp). A block owns a chunk of a key head and adds
// up its value heads in turn, so that no two blocks write to one place. Of each value head's tiles those of the next
// are fetched as soon as their places are free.
#include "kernels/cuda_delta_rule.cuh"

namespace lathe::kernels::cuda {
namespace {

constexpr uint32_t kKeys = 0, kQueries = kTileBytes, kRead = 2 * kTileBytes, kDeltas = 3 * kTileBytes,
                   kErrors = 4 * kTileBytes, kBefore = 5 * kTileBytes, kAfter = kBefore + kStateBytes,
                   kSlopes = kAfter + kStateBytes, kMixes = kSlopes + kSquareBytes, kSums = kMixes + kSquareBytes;

constexpr int kParts = 2;  // groups of four warps

// Sums over rows and columns, from the warps to the one that makes dg and dβ of them.
struct Sums {
  float up[kParts][kC], down[kParts][kC], beta[kParts][kC];
  float columns[2][kC / 16 * (kC / 16 + 1) * 8];  // of both triangles, of each 16 rows up to the diagonal
  float through[4 * kParts];
};

constexpr int kSharedBytes = kSums + sizeof(Sums);
static_assert(kSharedBytes <= 163 * 1024, "an A100 has no more");

struct Gather : Kernel {
  const __nv_bfloat16* d_o;
  void* d_states;
  void* d_deltas;
  __nv_bfloat16 *d_q, *d_k, *d_v;
  float *d_g, *d_beta;
};

// A warp's rows are [16 row_block, + 16); of 128 columns of keys or values its
// group takes kSlice. Of the triangles, which have 64, the first half of the groups takes dO's and the others X's.
struct Place {
  static constexpr int kThreads = kParts * 128;
  static constexpr int kSlice = kD / kParts;
  int lane, row_block, part;
  __device__ Place()
      : lane(threadIdx.x % kLanes),
        row_block(threadIdx.x / kLanes % 4),
        part(__shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / kLanes / 4, 0)) {}
  __device__ int row(int half) const { return 16 * row_block + lane / 4 + 8 * half; }
  __device__ int column() const { return kSlice * part; }
  __device__ bool of_errors() const { return part >= kParts / 2; }
  __device__ int triangle_column() const { return kSlice * (part % (kParts / 2)); }
  // Where columns of the warp's rows begin in Sums::columns.
  __device__ int sums_start(int block) const { return block * (block + 1) * 8; }
};

using Slice = float[Place::kSlice / 8][4];  // a warp's 16 rows and its group's columns

// Of one value head, what a thread's two rows need.
struct RowFactors {
  float sum[2], decay[2], tail[2], beta[2];
  float up[2] = {}, down[2] = {}, d_beta[2] = {};

  __device__ RowFactors(const float* decays, const Place& at) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* from = decays + at.row(half);
      sum[half] = from[kSumRow * kC], decay[half] = from[kDecayRow * kC];
      tail[half] = from[kTailRow * kC], beta[half] = from[kBetaRow * kC];
    }
  }
};

// What is read from global memory straight to registers: started before the tiles are waited for.
struct Direct {
  uint32_t scores[Place::kSlice / 8][2];
  uint2 values[Place::kSlice / 16][2];

  __device__ Direct(const Gather& p, const Place& at, int64_t head, int64_t chunk, int real) {
    const auto* score =
        of_chunk<__nv_bfloat16>(p.chunks.scores, p, head, chunk, kC * kC) + at.triangle_column() + 2 * (at.lane % 4);
    const auto* v = static_cast<const __nv_bfloat16*>(p.in.v.data) + chunk * kC * p.in.v.stride + head * kD +
                    at.column() + four_start(at.lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = at.row(half);
#pragma unroll
      for (int n = 0; n < at.kSlice / 8; ++n)
        scores[n][half] = at.of_errors() ? 0 : *reinterpret_cast<const uint32_t*>(score + row * kC + 8 * n);
#pragma unroll
      for (int k = 0; k < at.kSlice / 16; ++k)
        values[k][half] = row < real ? *reinterpret_cast<const uint2*>(v + row * p.in.v.stride + 16 * k) : uint2{0, 0};
    }
  }
};

// The gradients of what was read, and of errors: needed first, and no longer once dS is at work.
__device__ __forceinline__ void load_rows(const Gather& p, uint32_t base, int64_t head, int64_t chunk, int real) {
  constexpr int kThreads = Place::kThreads;
  const int64_t row = p.shape.value_heads * kD;
  load_tile<kThreads, kC, kD / 8>(threadIdx.x, base + kRead, p.d_o + chunk * kC * row + head * kD, row, real);
  load_tile<kThreads, kD, kC / 8>(threadIdx.x, base + kErrors,
                                  of_chunk<__nv_bfloat16>(p.d_deltas, p, head, chunk, kD * kC), kC);
}
__device__ __forceinline__ void load_rest(const Gather& p, uint32_t base, int64_t head, int64_t chunk) {
  constexpr int kThreads = Place::kThreads;
  load_tile<kThreads, kD, kC / 8>(threadIdx.x, base + kDeltas,
                                  of_chunk<__nv_bfloat16>(p.chunks.deltas, p, head, chunk, kD * kC), kC);
  copy_commit();
  load_tile<kThreads, kD, kD / 8>(threadIdx.x, base + kBefore,
                                  of_chunk<__nv_bfloat16>(p.chunks.states, p, head, chunk, kD * kD), kD);
  copy_commit();
  load_tile<kThreads, kD, kD / 8>(threadIdx.x, base + kAfter,
                                  of_chunk<__nv_bfloat16>(p.d_states, p, head, chunk, kD * kD), kD);
  copy_commit();
}
// All but the kLeft newest of them are there for products.
template <int kLeft>
__device__ __forceinline__ void wait_tiles() {
  copy_wait<kLeft>();
  show_to_products();
  __syncthreads();
}

// dV, and the values' part of dβ.
__device__ __forceinline__ void values_gradient(const Gather& p, uint32_t base, const Place& at, int64_t head,
                                                int64_t chunk, int real, const Direct& direct, RowFactors& f) {
  const Tile<kD> errors{base + kErrors};
  __nv_bfloat16* d_v = p.d_v + (chunk * kC * p.shape.value_heads + head) * kD + at.column() + four_start(at.lane);
#pragma unroll
  for (int k = 0; k < at.kSlice / 16; ++k) {
    const Fragment x = errors.first_transposed(at.column() + 16 * k, 16 * at.row_block, at.lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint2 four = gather_four(x.x[half], x.x[2 + half], at.lane), value = direct.values[k][half];
      const float2 x0 = unpack_pair(four.x), x1 = unpack_pair(four.y);
      const float2 v0 = unpack_pair(value.x), v1 = unpack_pair(value.y);
      f.d_beta[half] += x0.x * v0.x + x0.y * v0.y + x1.x * v1.x + x1.y * v1.y;
      const float beta = f.beta[half];
      if (at.row(half) < real)
        *reinterpret_cast<uint2*>(d_v + at.row(half) * p.shape.value_heads * kD + 16 * k) =
            make_uint2(pack_pair(beta * x0.x, beta * x0.y), pack_pair(beta * x1.x, beta * x1.y));
    }
  }
}

__device__ __forceinline__ void store_half(uint32_t address, float x) {
  asm volatile("st.shared.b16 [%0], %1;\n" ::"r"(address), "h"(__bfloat16_as_ushort(__float2bfloat16_rn(x)))
               : "memory");
}
__device__ __forceinline__ void store_pair(uint32_t address, uint32_t x) {
  asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(address), "r"(x) : "memory");
}
__device__ __forceinline__ float2 load_pair(uint32_t address) {
  uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];\n" : "=r"(x) : "r"(address) : "memory");
  return unpack_pair(x);
}

// A pair of columns' sums over a warp's 16 rows.
__device__ __forceinline__ void add_columns(int lane, float (&sum)[2], float* to) {
#pragma unroll
  for (int e = 0; e < 2; ++e) {
#pragma unroll
    for (int offset = 4; offset < kLanes; offset *= 2) sum[e] += __shfl_xor_sync(0xFFFFFFFFU, sum[e], offset);
    if (lane < 4) to[2 * lane + e] = sum[e];
  }
}

// tril(dO Dᵀ) becomes P in shared memory; what its exponents add to dg.
__device__ __forceinline__ void read_triangle(uint32_t base, const Place& at, const Slice& d_a, const Direct& direct,
                                              const float* decays, RowFactors& f, float* columns) {
  const Tile<kC> slopes{base + kSlopes};
#pragma unroll
  for (int n = 0; n < at.kSlice / 8; ++n) {
    const int first = at.triangle_column() + 8 * n, column = first + 2 * (at.lane % 4);
    if (first >= 16 * at.row_block + 16) {
#pragma unroll
      for (int half = 0; half < 2; ++half) store_pair(slopes.pair(at.row(half), column), 0);
      continue;
    }
    const float2 sum = *reinterpret_cast<const float2*>(decays + kSumRow * kC + column);
    float column_sum[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = at.row(half);
      const float2 score = unpack_pair(direct.scores[n][half]);
      float slope[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int j = column + e;
        const float d = d_a[n][2 * half + e];
        // Masked before the exponential: above the diagonal exponents are positive.
        slope[e] = row >= j ? d * __expf(f.sum[half] - (e ? sum.y : sum.x)) : 0.0F;
        const float exponent = row > j ? d * (e ? score.y : score.x) : 0.0F;
        f.up[half] += exponent;
        column_sum[e] += exponent;
      }
      store_pair(slopes.pair(row, column), pack_pair(slope[0], slope[1]));
    }
    add_columns(at.lane, column_sum, columns + first);
  }
}

// stril(X Dᵀ) becomes Z; its part of dβ and dg.
__device__ __forceinline__ void erase_triangle(uint32_t base, const Place& at, const Slice& x_d, const Slice& kk,
                                               const float* decays, RowFactors& f, float* columns) {
  const Tile<kC> mixes{base + kMixes};
#pragma unroll
  for (int n = 0; n < at.kSlice / 8; ++n) {
    const int first = at.triangle_column() + 8 * n, column = first + 2 * (at.lane % 4);
    if (first >= 16 * at.row_block + 16) continue;
    const float2 sum = *reinterpret_cast<const float2*>(decays + kSumRow * kC + column);
    float column_sum[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = at.row(half);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int j = column + e;
        const float y = row > j ? x_d[n][2 * half + e] * __expf(f.sum[half] - (e ? sum.y : sum.x)) : 0.0F;
        const float own = y * kk[n][2 * half + e], mix = -f.beta[half] * y;
        f.d_beta[half] -= own;
        f.up[half] -= f.beta[half] * own;
        column_sum[e] -= f.beta[half] * own;
        if (row >= j) store_half(mixes.pair(row, column) + 2 * e, mix);
        if (row > j) store_half(mixes.pair(j, row & ~1) + 2 * (row & 1), mix);
      }
    }
    add_columns(at.lane, column_sum, columns + first);
  }
}

// What the groups make of the chunk's own triangles.
__device__ __forceinline__ void triangles(uint32_t base, const Place& at, const Direct& direct, const float* decays,
                                          RowFactors& f, Sums& sums) {
  const Tile<kC> read{base + kRead}, keys{base + kKeys};
  const Tile<kD> deltas{base + kDeltas}, errors{base + kErrors};
  float* columns = sums.columns[at.of_errors()] + at.sums_start(at.row_block);
  Slice product;
  if (at.of_errors()) {
    Slice kk;  // k_i·k_j: cheaper to recompute for each value head than to keep
    begin_products(product, kk);
    multiply_shared<false, kD / 16>(product, turned(errors), turned(deltas, 0, at.triangle_column()));
    multiply_shared<false, kD / 16>(kk, plain(keys), plain(keys, at.triangle_column()));
    commit_products();
    wait_products<0>(product, kk);
    erase_triangle(base, at, product, kk, decays, f, columns);
  } else {
    begin_products(product);
    multiply_shared<false, kD / 16>(product, plain(read), turned(deltas, 0, at.triangle_column()));
    commit_products();
    wait_products<0>(product);
    read_triangle(base, at, product, direct, decays, f, columns);
  }
}

// What is read of S_0 and erased from it.
__device__ __forceinline__ void through_state(uint32_t base, const Place& at, RowFactors& f, Slice& d_q, Slice& d_k) {
  const Tile<kC> read{base + kRead}, keys{base + kKeys}, queries{base + kQueries};
  const Tile<kD> errors{base + kErrors}, before{base + kBefore};
  Slice reads, erased;
  begin_products(reads, erased);
  multiply_shared<false, kD / 16>(reads, plain(read), turned(before, 0, at.column()));
  multiply_shared<false, kD / 16>(erased, turned(errors), turned(before, 0, at.column()));
  commit_products();
  wait_products<0>(reads, erased);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float decay = f.decay[half], forgotten = f.beta[half] * decay;
    float of_q = 0, of_k = 0;
#pragma unroll
    for (int n = 0; n < at.kSlice / 8; ++n) {
      const int column = at.column() + 8 * n + 2 * (at.lane % 4);
      const float2 q = load_pair(queries.pair(at.row(half), column)), k = load_pair(keys.pair(at.row(half), column));
      of_q += reads[n][2 * half] * q.x + reads[n][2 * half + 1] * q.y;
      of_k += erased[n][2 * half] * k.x + erased[n][2 * half + 1] * k.y;
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        d_q[n][e] += decay * reads[n][e];
        d_k[n][e] -= forgotten * erased[n][e];
      }
    }
    f.up[half] += decay * of_q - forgotten * of_k;
    f.d_beta[half] -= decay * of_k;
  }
}

// Σ S_0 ∘ dS, a thread's part of it.
template <int kThreads>
__device__ __forceinline__ float state_dot(const unsigned char* shared) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < static_cast<int>(kStateBytes / 16 / kThreads); ++i) {
    const uint32_t offset = (i * kThreads + threadIdx.x) * 16;
    const uint4 s = *reinterpret_cast<const uint4*>(shared + kBefore + offset);
    const uint4 d = *reinterpret_cast<const uint4*>(shared + kAfter + offset);
    const uint32_t ss[4] = {s.x, s.y, s.z, s.w}, ds[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 a = unpack_pair(ss[e]), b = unpack_pair(ds[e]);
      sum += a.x * b.x + a.y * b.y;
    }
  }
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, offset);
  return sum;
}

// What is written to the state after the chunk; and the state's own way through it.
__device__ __forceinline__ void into_state(uint32_t base, const unsigned char* shared, const Place& at, RowFactors& f,
                                           Slice& d_k, Sums& sums) {
  const Tile<kC> keys{base + kKeys};
  const Tile<kD> deltas{base + kDeltas}, after{base + kAfter};
  Slice written;
  begin_products(written);
  multiply_shared<false, kD / 16>(written, turned(deltas), turned(after, 0, at.column()));
  commit_products();
  const float dot = state_dot<Place::kThreads>(shared);
  if (at.lane == 0) sums.through[threadIdx.x / kLanes] = dot;
  wait_products<0>(written);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float of_k = 0;
#pragma unroll
    for (int n = 0; n < at.kSlice / 8; ++n) {
      const float2 k = load_pair(keys.pair(at.row(half), at.column() + 8 * n + 2 * (at.lane % 4)));
      of_k += written[n][2 * half] * k.x + written[n][2 * half + 1] * k.y;
      d_k[n][2 * half] += f.tail[half] * written[n][2 * half];
      d_k[n][2 * half + 1] += f.tail[half] * written[n][2 * half + 1];
    }
    f.down[half] = f.tail[half] * of_k;
  }
}

// A thread's sums over its columns, added up over the four lanes of a row.
__device__ __forceinline__ void hand_on(const Place& at, const RowFactors& f, Sums& sums) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float all[3] = {f.up[half], f.down[half], f.d_beta[half]};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      all[i] += __shfl_xor_sync(0xFFFFFFFFU, all[i], 1);
      all[i] += __shfl_xor_sync(0xFFFFFFFFU, all[i], 2);
    }
    if (at.lane % 4 == 0) {
      sums.up[at.part][at.row(half)] = all[0];
      sums.down[at.part][at.row(half)] = all[1];
      sums.beta[at.part][at.row(half)] = all[2];
    }
  }
}

// One warp: dg_i sums what reaches a decay from row i on, what was written before it, and the state's own way. Sums
// over columns are taken off those over rows, since an exponent G_i - G_j holds g only between the two.
__device__ void gates_gradient(const Gather& p, const Place& at, int64_t head, int64_t chunk, int real, float end,
                               const Sums& sums) {
  const int lane = at.lane;
  float up[2] = {}, down[2] = {}, beta[2] = {}, state = 0;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int row = 2 * lane + e;
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      up[e] += sums.up[part][row], down[e] += sums.down[part][row], beta[e] += sums.beta[part][row];
    for (int block = row / 16; block < kC / 16; ++block)
      up[e] -= sums.columns[0][at.sums_start(block) + row] + sums.columns[1][at.sums_start(block) + row];
  }
#pragma unroll
  for (int i = 0; i < 4 * kParts; ++i) state += sums.through[i];
  float later = up[0] + up[1], earlier = down[0] + down[1];
#pragma unroll
  for (int offset = 1; offset < kLanes; offset *= 2) {
    const float below = __shfl_down_sync(0xFFFFFFFFU, later, offset),
                above = __shfl_up_sync(0xFFFFFFFFU, earlier, offset);
    if (lane + offset < kLanes) later += below;
    if (lane >= offset) earlier += above;
  }
  later = __shfl_down_sync(0xFFFFFFFFU, later, 1), earlier = __shfl_up_sync(0xFFFFFFFFU, earlier, 1);
  if (lane == kLanes - 1) later = 0;
  if (lane == 0) earlier = 0;
  const float d_g[2] = {later + up[1] + up[0] + earlier + end * state, later + up[1] + earlier + down[0] + end * state};
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int row = 2 * lane + e;
    if (row >= real) continue;
    const int64_t to = (chunk * kC + row) * p.shape.value_heads + head;
    p.d_g[to] = d_g[e];
    p.d_beta[to] = beta[e];
  }
}

// The chunk's own part of dQ and dK.
__device__ __forceinline__ void inside_chunk(uint32_t base, const Place& at, Slice& d_q, Slice& d_k) {
  const Tile<kC> keys{base + kKeys}, queries{base + kQueries}, slopes{base + kSlopes}, mixes{base + kMixes};
  begin_products(d_q, d_k);
  multiply_shared<true, kC / 16>(d_q, plain(slopes), turned(keys, 0, at.column()));
  multiply_shared<true, kC / 16>(d_k, turned(slopes), turned(queries, 0, at.column()));
  multiply_shared<true, kC / 16>(d_k, plain(mixes), turned(keys, 0, at.column()));
  commit_products();
  wait_products<0>(d_q, d_k);
}

__device__ __forceinline__ void store_rows(const Gather& p, __nv_bfloat16* to, const Place& at, int64_t key_head,
                                           int64_t chunk, int real, const Slice& x) {
  to += (chunk * kC * p.shape.key_heads + key_head) * kD + at.column() + four_start(at.lane);
#pragma unroll
  for (int n = 0; n < at.kSlice / 16; ++n) {
    const Fragment f = as_first(x[2 * n], x[2 * n + 1]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint2 four = gather_four(f.x[half], f.x[2 + half], at.lane);
      if (at.row(half) < real) *reinterpret_cast<uint2*>(to + at.row(half) * p.shape.key_heads * kD + 16 * n) = four;
    }
  }
}

__global__ void __launch_bounds__(kParts * 128, 1) gather_gradients(const Gather p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int kThreads = Place::kThreads;
  auto& sums = *reinterpret_cast<Sums*>(shared + kSums);
  const uint32_t base = shared_address(shared);
  const Place at;
  const int64_t chunk = blockIdx.x, key_head = blockIdx.y;
  const int real = static_cast<int>(min(static_cast<int64_t>(kC), p.shape.tokens - chunk * kC));
  const auto rows = [&](const DeltaRows& t) {
    return static_cast<const __nv_bfloat16*>(t.data) + chunk * kC * t.stride + key_head * kD;
  };
  load_tile<kThreads, kC, kD / 8>(threadIdx.x, base + kKeys, rows(p.in.k), p.in.k.stride, real);
  load_tile<kThreads, kC, kD / 8>(threadIdx.x, base + kQueries, rows(p.in.q), p.in.q.stride, real);
  load_rows(p, base, key_head * p.ratio, chunk, real);
  load_rest(p, base, key_head * p.ratio, chunk);
  Slice d_q = {}, d_k = {};
  for (int r = 0; r < p.ratio; ++r) {
    const int64_t head = key_head * p.ratio + r;
    const float* decays = of_chunk<float>(p.chunks.decays, p, head, chunk, kDecayRows * kC);
    RowFactors f(decays, at);
    const float end = decays[kDecayRow * kC + kC - 1];
    const Direct direct(p, at, head, chunk, real);
    wait_tiles<2>();
    values_gradient(p, base, at, head, chunk, real, direct, f);
    triangles(base, at, direct, decays, f, sums);
    wait_tiles<1>();
    through_state(base, at, f, d_q, d_k);
    wait_tiles<0>();
    if (r + 1 < p.ratio) load_rows(p, base, head + 1, chunk, real);
    into_state(base, shared, at, f, d_k, sums);
    hand_on(at, f, sums);
    __syncthreads();
    if (r + 1 < p.ratio) load_rest(p, base, head + 1, chunk);
    if (threadIdx.x < kLanes) gates_gradient(p, at, head, chunk, real, end, sums);
    inside_chunk(base, at, d_q, d_k);
  }
  store_rows(p, p.d_q, at, key_head, chunk, real, d_q);
  store_rows(p, p.d_k, at, key_head, chunk, real, d_k);
}

}  // namespace

void gather_delta_gradients(const Kernel& kernel, const void* d_o, const DeltaGradients& out, CUstream_st* stream) {
  const Gather p{kernel,
                 static_cast<const __nv_bfloat16*>(d_o),
                 out.d_states,
                 out.d_deltas,
                 static_cast<__nv_bfloat16*>(out.q),
                 static_cast<__nv_bfloat16*>(out.k),
                 static_cast<__nv_bfloat16*>(out.v),
                 out.g,
                 out.beta};
  cudaFuncSetAttribute(gather_gradients, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  const dim3 grid(static_cast<unsigned>(p.chunk_count), static_cast<unsigned>(p.shape.key_heads));
  gather_gradients<<<grid, Place::kThreads, kSharedBytes, stream>>>(p);
}

}  // namespace lathe::kernels::cuda
