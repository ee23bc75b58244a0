// The gated delta rule token by token, for the few that decoding brings: all of it in fp32.
//
// A block owns 32 columns of a value head's state in registers, eight warps with 16 of the keys' rows each. With S̄ the
// decayed state, what is read before and after the write comes from one pass over it:
//
//   r = S̄ᵀ k     δ = β (v - r)     o = S̄ᵀ q + (q·k) δ     S = S̄ + k δᵀ
#include "kernels/cuda_delta_rule.cuh"

namespace lathe::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kRows = kD / kWarps;
constexpr int kThreads = kWarps * kLanes;

struct Step : Kernel {
  __nv_bfloat16* o;
  float* last;
};

struct Shared {
  float q[kDeltaStepTokens][kD], k[kDeltaStepTokens][kD], qk[kDeltaStepTokens];
  float read[kWarps][kLanes], out[kWarps][kLanes];
};

__device__ __forceinline__ const __nv_bfloat16* row_of(const DeltaRows& t, int64_t token, int64_t head) {
  return static_cast<const __nv_bfloat16*>(t.data) + token * t.stride + head * kD;
}

// Queries and keys of all tokens, and their dots: one warp a token.
__device__ __forceinline__ void load_keys(const Step& p, int64_t key_head, Shared& shared) {
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  if (warp < p.shape.tokens) {
    float dot = 0;
#pragma unroll
    for (int i = lane; i < kD; i += kLanes) {
      const float q = __bfloat162float(row_of(p.in.q, warp, key_head)[i]);
      const float k = __bfloat162float(row_of(p.in.k, warp, key_head)[i]);
      shared.q[warp][i] = q, shared.k[warp][i] = k;
      dot += q * k;
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(0xFFFFFFFFU, dot, offset);
    if (lane == 0) shared.qk[warp] = dot;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) step_tokens(const Step p) {
  __shared__ Shared shared;
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int64_t head = blockIdx.y, column = blockIdx.x * kLanes + lane;
  load_keys(p, head / p.ratio, shared);
  const int64_t place = (head * kD + warp * kRows) * kD + column;
  float s[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) s[i] = p.in.start ? p.in.start[place + i * kD] : 0.0F;
  for (int t = 0; t < p.shape.tokens; ++t) {
    const int64_t gate = t * p.shape.value_heads + head;
    const float decay = expf(p.in.g[gate]), beta = p.in.beta[gate];
    const float *k = shared.k[t] + warp * kRows, *q = shared.q[t] + warp * kRows;
    float read = 0, out = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      s[i] *= decay;
      read += k[i] * s[i];
      out += q[i] * s[i];
    }
    shared.read[warp][lane] = read, shared.out[warp][lane] = out;
    __syncthreads();
    read = 0, out = 0;
#pragma unroll
    for (int part = 0; part < kWarps; ++part) read += shared.read[part][lane], out += shared.out[part][lane];
    __syncthreads();  // the next token's sums may be written
    const float delta = beta * (__bfloat162float(row_of(p.in.v, t, head)[column]) - read);
#pragma unroll
    for (int i = 0; i < kRows; ++i) s[i] += k[i] * delta;
    if (warp == 0) p.o[gate * kD + column] = __float2bfloat16_rn(out + shared.qk[t] * delta);
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) p.last[place + i * kD] = s[i];
}

}  // namespace

void step_delta(const Kernel& kernel, void* o, float* last, CUstream_st* stream) {
  const Step p{kernel, static_cast<__nv_bfloat16*>(o), last};
  const dim3 grid(kD / kLanes, static_cast<unsigned>(kernel.shape.value_heads));
  step_tokens<<<grid, kThreads, 0, stream>>>(p);
}

}  // namespace lathe::kernels::cuda
