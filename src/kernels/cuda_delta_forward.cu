// The forward walk of the gated delta rule over its chunks.
//
// A warp owns 16 columns of the values and their part of the state, transposed, in registers: Sᵀ [16, K]. With D = δ, T
// the inverse and A the scores of a chunk, everything it needs chains in registers:
//
//   Rᵀ = β (Vᵀ - e^G Sᵀ Kᵀ)     Dᵀ = Rᵀ Tᵀ     Oᵀ = e^G Sᵀ Qᵀ + Dᵀ Aᵀ     Sᵀ <- e^Γ Sᵀ + (e^{Γ - G} Dᵀ) K
#include "kernels/cuda_delta_scan.cuh"

namespace lathe::kernels::cuda {
namespace {

struct ForwardScan : Kernel {
  __nv_bfloat16* o;
  float* last;
};

// Rows of o, from their transpose.
__device__ __forceinline__ void store_output(const ForwardScan& p, const Rows& o, int64_t first, int64_t column,
                                             int lane) {
#pragma unroll
  for (int n = 0; n < kC / 8; ++n) {
    const uint32_t low = transpose_matrix(pack_pair(o[n][0], o[n][1])),
                   high = transpose_matrix(pack_pair(o[n][2], o[n][3]));
    const uint2 four = gather_four(low, high, lane);
    const int64_t row = first + 8 * n + lane / 4;
    if (row < p.shape.tokens)
      *reinterpret_cast<uint2*>(p.o + (row * p.shape.value_heads + blockIdx.y) * kD + column + four_start(lane)) = four;
  }
}

// R from r = Sᵀ Kᵀ.
__device__ __forceinline__ void errors(const Tile<kC>& values, const float* decays, Rows& r, Fragment (&rounded)[4]) {
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
#pragma unroll
  for (int k = 0; k < kC / 16; ++k) {
    const Fragment v = values.first_transposed(16 * k, 16 * warp, lane);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int n = 2 * k + tile;
      const float2 decay = of_column(decays, kDecayRow, n), beta = of_column(decays, kBetaRow, n);
      const float2 low = unpack_pair(v.x[2 * tile]), high = unpack_pair(v.x[2 * tile + 1]);
      r[n][0] = beta.x * (low.x - decay.x * r[n][0]);
      r[n][1] = beta.y * (low.y - decay.y * r[n][1]);
      r[n][2] = beta.x * (high.x - decay.x * r[n][2]);
      r[n][3] = beta.y * (high.y - decay.y * r[n][3]);
    }
  }
  round_to(rounded, r);
}

template <bool kKeep>
__device__ __forceinline__ void forward_chunk(const ForwardScan& p, int64_t chunk, uint32_t stage, const float* decays,
                                              int column, State& s) {
  const int lane = threadIdx.x % kLanes;
  const int64_t head = blockIdx.y;
  const Tile<kC> keys{stage + kKeys}, queries{stage + kQueries}, inverse{stage + kInverse}, scores{stage + kScores},
      values{stage + kValues};
  Rows r, o, d;
  Fragment before[kD / 16], rhs[kC / 16], delta[kC / 16], written[kC / 16];
  round_to(before, s);
  Fragment kept[kD / 16];  // operands are not read while products run
  if (kKeep) copy_fragments(kept, before);
  scale(s, decays[kDecayRow * kC + kC - 1]);
  begin_products(r, o, before);
  multiply_tiles<false>(r, before, plain(keys));
  commit_products();
  multiply_tiles<false>(o, before, plain(queries));
  commit_products();
  if (kKeep) store_fragments(of_chunk<__nv_bfloat16>(p.chunks.states, p, head, chunk, kD * kD), kept, column, lane);
  wait_products<1>(r);
  errors(values, decays, r, rhs);
  begin_products(d, rhs);
  multiply_tiles<false>(d, rhs, plain(inverse));
  commit_products();
  wait_products<0>(d, o, before);
  round_to(delta, d);
  Fragment kept_delta[kC / 16];
  if (kKeep) copy_fragments(kept_delta, delta);
  scale_columns(d, decays, kTailRow);
  round_to(written, d);
  scale_columns(o, decays, kDecayRow);
  begin_products(s, o, written, delta);
  multiply_tiles<true>(s, written, turned(keys));
  commit_products();
  multiply_tiles<true>(o, delta, plain(scores));
  commit_products();
  if (kKeep)
    store_fragments(of_chunk<__nv_bfloat16>(p.chunks.deltas, p, head, chunk, kD * kC), kept_delta, column, lane);
  wait_products<0>(s, o, written, delta);
  store_output(p, o, chunk * kC, column, lane);
}

template <int kStages, bool kKeep>
__global__ void __launch_bounds__(2 * kGroupThreads, 1) scan_forward(const ForwardScan p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t base = shared_address(shared);
  if (threadIdx.x >= kGroupThreads) {
    fetch<kStages>(p, p.in.v, base, [](int64_t step) { return step; });
    return;
  }
  const int lane = threadIdx.x % kLanes, column = blockIdx.x * kSlice + threadIdx.x / kLanes * 16;
  State s;
  load_state(p.in.start, s, blockIdx.y, column, lane);
  for (int64_t chunk = 0; chunk < p.chunk_count; ++chunk) {
    __syncthreads();
    const uint32_t stage = static_cast<uint32_t>(chunk % kStages) * kStageBytes;
    forward_chunk<kKeep>(p, chunk, base + stage, reinterpret_cast<const float*>(shared + stage + kDecays), column, s);
  }
  __syncthreads();
  if (p.last) store_state(p.last, s, blockIdx.y, column, lane);
}

}  // namespace

void scan_delta_forward(const Kernel& kernel, void* o, float* last, CUstream_st* stream) {
  const ForwardScan p{kernel, static_cast<__nv_bfloat16*>(o), last};
  const bool keep = p.chunks.states != nullptr;
  if (stages_of_scan() == 3) {
    keep ? launch_scan(scan_forward<3, true>, p, 3, stream) : launch_scan(scan_forward<3, false>, p, 3, stream);
  } else {
    keep ? launch_scan(scan_forward<2, true>, p, 2, stream) : launch_scan(scan_forward<2, false>, p, 2, stream);
  }
}

}  // namespace lathe::kernels::cuda
