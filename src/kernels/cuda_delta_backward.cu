// The backward walk of the gated delta rule, from the last chunk to the first: the gradients of δ and of the states.
//
// As the forward walk: a warp owns 16 columns of the values and their part of the state's gradient, transposed, in
// registers. X is the gradient of v - e^G S_0ᵀ k over β, seen through the triangle:
//
//   dDᵀ = e^{Γ - G} dSᵀ Kᵀ + dOᵀ A     Xᵀ = dDᵀ T     dSᵀ <- e^Γ dSᵀ + (e^G dOᵀ) Q - (β e^G Xᵀ) K
#include "kernels/cuda_delta_scan.cuh"

namespace lathe::kernels::cuda {
namespace {

struct BackwardScan : Kernel {
  DeltaRows d_o;
  const float* d_last;
  void* d_states;
  void* d_deltas;
  float* d_start;
};

// Each row of what was read, times its decay.
__device__ __forceinline__ void decayed(const Fragment (&read)[kC / 16], const float* decays,
                                        Fragment (&out)[kC / 16]) {
#pragma unroll
  for (int k = 0; k < kC / 16; ++k)
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const float2 decay = of_column(decays, kDecayRow, 2 * k + tile);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const float2 x = unpack_pair(read[k].x[2 * tile + part]);
        out[k].x[2 * tile + part] = pack_pair(decay.x * x.x, decay.y * x.y);
      }
    }
}

__device__ __forceinline__ void backward_chunk(const BackwardScan& p, int64_t chunk, uint32_t stage,
                                               const float* decays, int column, State& s) {
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int64_t head = blockIdx.y;
  const Tile<kC> keys{stage + kKeys}, queries{stage + kQueries}, inverse{stage + kInverse}, scores{stage + kScores},
      d_outputs{stage + kValues};
  Rows d, x;
  Fragment after[kD / 16], read[kC / 16], scaled[kC / 16], delta[kC / 16], error[kC / 16], erased[kC / 16];
  round_to(after, s);
  Fragment kept[kD / 16];  // operands are not read while products run
  copy_fragments(kept, after);
  scale(s, decays[kDecayRow * kC + kC - 1]);
#pragma unroll
  for (int k = 0; k < kC / 16; ++k) read[k] = d_outputs.first_transposed(16 * k, 16 * warp, lane);
  decayed(read, decays, scaled);
  begin_products(d, s, after, scaled);
  multiply_tiles<false>(d, after, plain(keys));
  commit_products();
  multiply_tiles<true>(s, scaled, turned(queries));
  commit_products();
  store_fragments(of_chunk<__nv_bfloat16>(p.d_states, p, head, chunk, kD * kD), kept, column, lane);
  wait_products<1>(d, after);
  scale_columns(d, decays, kTailRow);
  begin_products(d, read);
  multiply_tiles<true>(d, read, turned(scores));
  commit_products();
  wait_products<0>(d, s, read, scaled);
  round_to(delta, d);
  begin_products(x, delta);
  multiply_tiles<false>(x, delta, turned(inverse));
  commit_products();
  wait_products<0>(x, delta);
  round_to(error, x);
#pragma unroll
  for (int n = 0; n < kC / 8; ++n) {
    const float2 decay = of_column(decays, kDecayRow, n), beta = of_column(decays, kBetaRow, n);
    const float low = -decay.x * beta.x, high = -decay.y * beta.y;
    x[n][0] *= low, x[n][1] *= high, x[n][2] *= low, x[n][3] *= high;
  }
  round_to(erased, x);
  begin_products(s, erased);
  multiply_tiles<true>(s, erased, turned(keys));
  commit_products();
  store_fragments(of_chunk<__nv_bfloat16>(p.d_deltas, p, head, chunk, kD * kC), error, column, lane);
  wait_products<0>(s, erased);
}

template <int kStages>
__global__ void __launch_bounds__(2 * kGroupThreads, 1) scan_backward(const BackwardScan p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t base = shared_address(shared);
  const int64_t last = p.chunk_count - 1;
  if (threadIdx.x >= kGroupThreads) {
    fetch<kStages>(p, p.d_o, base, [last](int64_t step) { return last - step; });
    return;
  }
  const int lane = threadIdx.x % kLanes, column = blockIdx.x * kSlice + threadIdx.x / kLanes * 16;
  State s;
  load_state(p.d_last, s, blockIdx.y, column, lane);
  for (int64_t step = 0; step <= last; ++step) {
    __syncthreads();
    const uint32_t stage = static_cast<uint32_t>(step % kStages) * kStageBytes;
    backward_chunk(p, last - step, base + stage, reinterpret_cast<const float*>(shared + stage + kDecays), column, s);
  }
  __syncthreads();
  if (p.d_start) store_state(p.d_start, s, blockIdx.y, column, lane);
}

}  // namespace

void scan_delta_backward(const Kernel& kernel, const void* d_o, const float* d_last, const DeltaGradients& out,
                         CUstream_st* stream) {
  const BackwardScan p{kernel, {d_o, kernel.shape.value_heads * kD}, d_last, out.d_states, out.d_deltas, out.start};
  stages_of_scan() == 3 ? launch_scan(scan_backward<3>, p, 3, stream) : launch_scan(scan_backward<2>, p, 2, stream);
}

}  // namespace lathe::kernels::cuda
