#include <algorithm>

#include "kernels/cuda_common.cuh"
#include "kernels/cuda_layers.h"

namespace lathe::kernels::cuda {
namespace {

constexpr int kThreads = 256;

bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

unsigned grid_of(int64_t items, int64_t per_block, int64_t most) {
  return static_cast<unsigned>(std::clamp<int64_t>((items + per_block - 1) / per_block, 1, most));
}

__device__ __forceinline__ int64_t count_of(const Rows& rows) {
  return rows.outer * rows.inner;
}
__device__ __forceinline__ int64_t offset_of(const Rows& rows, int64_t row) {
  const int64_t outer = row / rows.inner;
  return outer * rows.outer_stride + (row - outer * rows.inner) * rows.inner_stride;
}

// The norm's factor and result for one number: w T(n), or T((1 + w) n).
template <class X, class W, class Y>
__device__ __forceinline__ Y weighted(float n, float w, bool zero_centred) {
  if (zero_centred) return narrow<Y>(rounded<X>(__fmul_rn(n, __fadd_rn(1.0F, w))));
  return narrow<Y>(__fmul_rn(rounded<X>(n), w));
}

// kLanes threads to a row: a warp, or the whole block. kPack numbers to an access.
template <class X, class W, class Y, int kLanes, int kPack>
__global__ void __launch_bounds__(kThreads)
    norm_rows(const X* x, Rows rows, const W* w, Y* y, float* r_out, float eps, bool zero_centred) {
  __shared__ float scratch[kThreads / kWarp];
  constexpr int kRowsPerBlock = kThreads / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int64_t count = count_of(rows);
  // All threads of a block take part in every turn, for the sum's sake.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock; first < count;
       first += static_cast<int64_t>(gridDim.x) * kRowsPerBlock) {
    const int64_t row = min(first + static_cast<int64_t>(threadIdx.x / kLanes), count - 1);
    const X* in = x + offset_of(rows, row);
    float sum = 0;
    for (int64_t at = lane * kPack; at < rows.columns; at += kLanes * kPack) {
      const Pack<X, kPack> pack = load<X, kPack>(in + at);
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum += widen(pack.at[i]) * widen(pack.at[i]);
    }
    const float r = rsqrtf(row_sum<kLanes>(sum, scratch) / static_cast<float>(rows.columns) + eps);
    if (r_out && lane == 0) r_out[row] = r;
    Y* out = y + row * rows.columns;
    for (int64_t at = lane * kPack; at < rows.columns; at += kLanes * kPack) {
      const Pack<X, kPack> pack = load<X, kPack>(in + at);
      const Pack<W, kPack> factors = load<W, kPack>(w + at);
      Pack<Y, kPack> result;
#pragma unroll
      for (int i = 0; i < kPack; ++i)
        result.at[i] = weighted<X, W, Y>(__fmul_rn(widen(pack.at[i]), r), widen(factors.at[i]), zero_centred);
      store(out + at, result);
    }
  }
}

// Sums of dw stay in shared memory, one row of them for each row that a block has in hand; a thread always adds to the
// same columns, so that no two meet.
template <class X, class W, class Y, int kLanes, int kPack>
__global__ void __launch_bounds__(kThreads) norm_rows_backward(const Y* dy, const X* x, Rows rows, const W* w,
                                                               const float* r_in, X* dx, float* dw, bool zero_centred) {
  extern __shared__ float sums[];  // [rows per block, columns]
  __shared__ float scratch[kThreads / kWarp];
  constexpr int kRowsPerBlock = kThreads / kLanes;
  const int lane = threadIdx.x % kLanes, slot = threadIdx.x / kLanes;
  const int64_t count = count_of(rows);
  float* own = sums + slot * rows.columns;
  for (int64_t at = lane; at < rows.columns; at += kLanes) own[at] = 0;
  __syncthreads();
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock; first < count;
       first += static_cast<int64_t>(gridDim.x) * kRowsPerBlock) {
    const bool real = first + slot < count;
    const int64_t row = real ? first + slot : count - 1;
    const X* in = x + offset_of(rows, row);
    const Y* gradient = dy + row * rows.columns;
    const float r = r_in[row], offset = zero_centred ? 1.0F : 0.0F;
    float dot = 0;
    for (int64_t at = lane * kPack; at < rows.columns; at += kLanes * kPack) {
      const Pack<X, kPack> pack = load<X, kPack>(in + at);
      const Pack<Y, kPack> dys = load<Y, kPack>(gradient + at);
      const Pack<W, kPack> factors = load<W, kPack>(w + at);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float n = widen(pack.at[i]) * r, d = widen(dys.at[i]);
        dot += d * (widen(factors.at[i]) + offset) * n;
        if (real) own[at + i] += d * n;
      }
    }
    const float mean = row_sum<kLanes>(dot, scratch) / static_cast<float>(rows.columns);
    if (!real) continue;
    X* out = dx + row * rows.columns;
    for (int64_t at = lane * kPack; at < rows.columns; at += kLanes * kPack) {
      const Pack<X, kPack> pack = load<X, kPack>(in + at);
      const Pack<Y, kPack> dys = load<Y, kPack>(gradient + at);
      const Pack<W, kPack> factors = load<W, kPack>(w + at);
      Pack<X, kPack> result;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float n = widen(pack.at[i]) * r;
        result.at[i] = narrow<X>(r * (widen(dys.at[i]) * (widen(factors.at[i]) + offset) - n * mean));
      }
      store(out + at, result);
    }
  }
  __syncthreads();
  for (int64_t at = threadIdx.x; at < rows.columns; at += kThreads) {
    float sum = 0;
    for (int other = 0; other < kRowsPerBlock; ++other) sum += sums[other * rows.columns + at];
    dw[static_cast<int64_t>(blockIdx.x) * rows.columns + at] = sum;
  }
}

// One thread per pack of the row's first half, or of what passes.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    rotate_rows(const T* x, Rows rows, int64_t half, const T* cos, const T* sin, T* y, float sign) {
  const int64_t passing = rows.columns - 2 * half, per_row = (half + passing) / kPack, items = count_of(rows) * per_row;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < items;
       item += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = item / per_row, at = (item - row * per_row) * kPack;
    const T* in = x + offset_of(rows, row);
    T* out = y + row * rows.columns;
    if (at >= half) {
      store(out + half + at, load<T, kPack>(in + half + at));
      continue;
    }
    const Pack<T, kPack> first = load<T, kPack>(in + at), second = load<T, kPack>(in + half + at);
    const int64_t table = row / rows.inner * half + at;
    const Pack<T, kPack> c = load<T, kPack>(cos + table), s = load<T, kPack>(sin + table);
    Pack<T, kPack> a, b;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float p = widen(first.at[i]), q = widen(second.at[i]), cosine = widen(c.at[i]),
                  sine = sign * widen(s.at[i]);
      a.at[i] = narrow<T>(__fsub_rn(rounded<T>(__fmul_rn(p, cosine)), rounded<T>(__fmul_rn(q, sine))));
      b.at[i] = narrow<T>(__fadd_rn(rounded<T>(__fmul_rn(q, cosine)), rounded<T>(__fmul_rn(p, sine))));
    }
    store(out + at, a);
    store(out + half + at, b);
  }
}

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0F / (1.0F + expf(-x));
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) silu_mul_rows(const T* gate_up, int64_t rows, int64_t inner, T* y) {
  const int64_t per_row = inner / kPack, items = rows * per_row;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < items;
       item += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = item / per_row, at = (item - row * per_row) * kPack;
    const T* in = gate_up + row * 2 * inner + at;
    const Pack<T, kPack> gate = load<T, kPack>(in), up = load<T, kPack>(in + inner);
    Pack<T, kPack> out;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float g = widen(gate.at[i]);
      out.at[i] = narrow<T>(__fmul_rn(rounded<T>(g * sigmoid(g)), widen(up.at[i])));
    }
    store(y + row * inner + at, out);
  }
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    silu_mul_rows_backward(const T* dy, const T* gate_up, int64_t rows, int64_t inner, T* d_gate_up) {
  const int64_t per_row = inner / kPack, items = rows * per_row;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < items;
       item += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = item / per_row, at = (item - row * per_row) * kPack;
    const int64_t place = row * 2 * inner + at;
    const Pack<T, kPack> gate = load<T, kPack>(gate_up + place), up = load<T, kPack>(gate_up + place + inner);
    const Pack<T, kPack> d = load<T, kPack>(dy + row * inner + at);
    Pack<T, kPack> d_gate, d_up;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float g = widen(gate.at[i]), s = sigmoid(g), through = rounded<T>(widen(d.at[i]) * widen(up.at[i]));
      d_gate.at[i] = narrow<T>(through * s * (1.0F + g * (1.0F - s)));
      d_up.at[i] = narrow<T>(widen(d.at[i]) * rounded<T>(g * s));
    }
    store(d_gate_up + place, d_gate);
    store(d_gate_up + place + inner, d_up);
  }
}

// A running maximum and Σ e^(x - maximum).
struct SoftMax {
  float maximum, sum;
};
__device__ __forceinline__ SoftMax joined(SoftMax a, SoftMax b) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  if (maximum == -INFINITY) return {maximum, 0.0F};
  return {maximum, a.sum * expf(a.maximum - maximum) + b.sum * expf(b.maximum - maximum)};
}

// One block to a row: rows are long, and few blocks are in flight when there are few rows.
constexpr int kWideThreads = 1024;

template <class T, int kPack>
__global__ void __launch_bounds__(kWideThreads)
    statistics_rows(const T* logits, int64_t vocabulary, const int64_t* target, float* log_sum, float* log_p) {
  __shared__ float maxima[kWideThreads / kWarp], sums[kWideThreads / kWarp];
  const int64_t row = blockIdx.x;
  const T* l = logits + row * vocabulary;
  SoftMax own{-INFINITY, 0};
  for (int64_t at = static_cast<int64_t>(threadIdx.x) * kPack; at < vocabulary; at += kWideThreads * kPack) {
    const Pack<T, kPack> pack = load<T, kPack>(l + at);
    float maximum = widen(pack.at[0]), sum = 0;
#pragma unroll
    for (int i = 1; i < kPack; ++i) maximum = fmaxf(maximum, widen(pack.at[i]));
#pragma unroll
    for (int i = 0; i < kPack; ++i) sum += expf(widen(pack.at[i]) - maximum);
    own = joined(own, {maximum, sum});
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float maximum = __shfl_xor_sync(0xFFFFFFFFU, own.maximum, offset);
    own = joined(own, {maximum, __shfl_xor_sync(0xFFFFFFFFU, own.sum, offset)});
  }
  if (threadIdx.x % kWarp == 0) maxima[threadIdx.x / kWarp] = own.maximum, sums[threadIdx.x / kWarp] = own.sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  SoftMax all{maxima[0], sums[0]};
  for (int warp = 1; warp < kWideThreads / kWarp; ++warp) all = joined(all, {maxima[warp], sums[warp]});
  log_sum[row] = all.maximum + logf(all.sum);
  log_p[row] = widen(l[target[row]]) - log_sum[row];
}

template <class T, int kPack>
__global__ void __launch_bounds__(kWideThreads)
    gradient_rows(T* logits, int64_t vocabulary, const int64_t* target, const float* slope, const float* log_sum) {
  const int64_t row = blockIdx.x, wanted = target[row];
  const float s = slope[row], log_total = log_sum[row];
  T* l = logits + row * vocabulary;
  for (int64_t at = static_cast<int64_t>(threadIdx.x) * kPack; at < vocabulary; at += kWideThreads * kPack) {
    Pack<T, kPack> pack = load<T, kPack>(l + at);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float p = expf(widen(pack.at[i]) - log_total);
      pack.at[i] = narrow<T>(at + i == wanted ? s - s * p : -s * p);
    }
    store(l + at, pack);
  }
}

template <class T>
constexpr int kPackOf = 16 / sizeof(T);

bool even_rows(const void* x, const Rows& rows, int64_t size, int64_t pack) {
  return aligned(x, 16) && rows.columns % pack == 0 && rows.outer_stride % pack == 0 && rows.inner_stride % pack == 0 &&
         size * pack == 16;
}

// Rows this long keep a whole block busy.
constexpr int64_t kLongRow = 1024;

template <class X, class W, class Y, int kLanes, int kPack>
void launch_norm(const void* x, const Rows& rows, const void* w, void* y, float* r, float eps, bool zero_centred,
                 Stream stream) {
  const unsigned grid = grid_of(rows.count(), kThreads / kLanes, 132 * 16);
  norm_rows<X, W, Y, kLanes, kPack><<<grid, kThreads, 0, stream>>>(
      static_cast<const X*>(x), rows, static_cast<const W*>(w), static_cast<Y*>(y), r, eps, zero_centred);
}

template <class X, class W, class Y>
void norm_of(const void* x, const Rows& rows, const void* w, void* y, float* r, float eps, bool zero_centred,
             Stream stream) {
  constexpr int kPack = kPackOf<X>;
  const bool vector =
      even_rows(x, rows, sizeof(X), kPack) && aligned(w, kPack * sizeof(W)) && aligned(y, kPack * sizeof(Y));
  const bool longer = rows.columns >= kLongRow;
  const auto launch = vector ? (longer ? launch_norm<X, W, Y, kThreads, kPack> : launch_norm<X, W, Y, kWarp, kPack>)
                             : (longer ? launch_norm<X, W, Y, kThreads, 1> : launch_norm<X, W, Y, kWarp, 1>);
  launch(x, rows, w, y, r, eps, zero_centred, stream);
}

template <class X, class W, class Y, int kLanes, int kPack>
void launch_norm_backward(const void* dy, const void* x, const Rows& rows, const void* w, const float* r, void* dx,
                          float* dw, bool zero_centred, Stream stream) {
  const auto shared = static_cast<size_t>(kThreads / kLanes * rows.columns) * sizeof(float);
  const auto kernel = norm_rows_backward<X, W, Y, kLanes, kPack>;
  if (shared > 48 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  kernel<<<kNormPartials, kThreads, shared, stream>>>(static_cast<const Y*>(dy), static_cast<const X*>(x), rows,
                                                      static_cast<const W*>(w), r, static_cast<X*>(dx), dw,
                                                      zero_centred);
}

template <class X, class W, class Y>
void norm_backward_of(const void* dy, const void* x, const Rows& rows, const void* w, const float* r, void* dx,
                      float* dw, bool zero_centred, Stream stream) {
  constexpr int kPack = kPackOf<X>;
  const bool vector = even_rows(x, rows, sizeof(X), kPack) && aligned(w, kPack * sizeof(W)) &&
                      aligned(dy, kPack * sizeof(Y)) && aligned(dx, 16);
  const bool longer = rows.columns >= kLongRow;
  const auto launch =
      vector ? (longer ? launch_norm_backward<X, W, Y, kThreads, kPack> : launch_norm_backward<X, W, Y, kWarp, kPack>)
             : (longer ? launch_norm_backward<X, W, Y, kThreads, 1> : launch_norm_backward<X, W, Y, kWarp, 1>);
  launch(dy, x, rows, w, r, dx, dw, zero_centred, stream);
}

template <class T, int kPack>
void launch_rotate(const void* x, const Rows& rows, int64_t half, const void* cos, const void* sin, void* y, float sign,
                   Stream stream) {
  const int64_t items = rows.count() * (rows.columns - half) / kPack;
  rotate_rows<T, kPack><<<grid_of(items, kThreads, 132 * 16), kThreads, 0, stream>>>(
      static_cast<const T*>(x), rows, half, static_cast<const T*>(cos), static_cast<const T*>(sin), static_cast<T*>(y),
      sign);
}

template <class T>
void rotate_of(const void* x, const Rows& rows, int64_t half, const void* cos, const void* sin, void* y, float sign,
               Stream stream) {
  constexpr int kPack = kPackOf<T>;
  const bool vector = even_rows(x, rows, sizeof(T), kPack) && half % kPack == 0 && aligned(cos, 16) &&
                      aligned(sin, 16) && aligned(y, 16);
  (vector ? launch_rotate<T, kPack> : launch_rotate<T, 1>)(x, rows, half, cos, sin, y, sign, stream);
}

template <class T>
void silu_mul_of(const void* gate_up, int64_t rows, int64_t inner, void* y, Stream stream) {
  constexpr int kPack = kPackOf<T>;
  const bool vector = aligned(gate_up, 16) && aligned(y, 16) && inner % kPack == 0;
  const unsigned grid = grid_of(rows * inner / (vector ? kPack : 1), kThreads, 132 * 16);
  const auto kernel = vector ? silu_mul_rows<T, kPack> : silu_mul_rows<T, 1>;
  kernel<<<grid, kThreads, 0, stream>>>(static_cast<const T*>(gate_up), rows, inner, static_cast<T*>(y));
}

template <class T>
void silu_mul_backward_of(const void* dy, const void* gate_up, int64_t rows, int64_t inner, void* d_gate_up,
                          Stream stream) {
  constexpr int kPack = kPackOf<T>;
  const bool vector = aligned(gate_up, 16) && aligned(dy, 16) && aligned(d_gate_up, 16) && inner % kPack == 0;
  const unsigned grid = grid_of(rows * inner / (vector ? kPack : 1), kThreads, 132 * 16);
  const auto kernel = vector ? silu_mul_rows_backward<T, kPack> : silu_mul_rows_backward<T, 1>;
  kernel<<<grid, kThreads, 0, stream>>>(static_cast<const T*>(dy), static_cast<const T*>(gate_up), rows, inner,
                                        static_cast<T*>(d_gate_up));
}

template <class T>
void soft_max_statistics_of(const void* logits, int64_t rows, int64_t vocabulary, const int64_t* target, float* log_sum,
                            float* log_p, Stream stream) {
  constexpr int kPack = kPackOf<T>;
  const bool vector = aligned(logits, 16) && vocabulary % kPack == 0;
  const auto kernel = vector ? statistics_rows<T, kPack> : statistics_rows<T, 1>;
  kernel<<<static_cast<unsigned>(rows), kWideThreads, 0, stream>>>(static_cast<const T*>(logits), vocabulary, target,
                                                                   log_sum, log_p);
}

template <class T>
void soft_max_gradient_of(void* logits, int64_t rows, int64_t vocabulary, const int64_t* target, const float* slope,
                          const float* log_sum, Stream stream) {
  constexpr int kPack = kPackOf<T>;
  const bool vector = aligned(logits, 16) && vocabulary % kPack == 0;
  const auto kernel = vector ? gradient_rows<T, kPack> : gradient_rows<T, 1>;
  kernel<<<static_cast<unsigned>(rows), kWideThreads, 0, stream>>>(static_cast<T*>(logits), vocabulary, target, slope,
                                                                   log_sum);
}

}  // namespace

void rms_norm(const void* x, const Rows& rows, Number x_type, const void* w, Number w_type, void* y, float* r,
              float eps, bool zero_centred, Stream stream) {
  if (rows.count() == 0) return;
  const bool x_wide = x_type == Number::kFp32, w_wide = w_type == Number::kFp32;
  const auto of_narrow = !w_wide        ? norm_of<bf16, bf16, bf16>
                         : zero_centred ? norm_of<bf16, float, bf16>
                                        : norm_of<bf16, float, float>;
  const auto of = !x_wide ? of_narrow : w_wide ? norm_of<float, float, float> : norm_of<float, bf16, float>;
  of(x, rows, w, y, r, eps, zero_centred, stream);
}

void rms_norm_backward(const void* dy, const void* x, const Rows& rows, Number x_type, const void* w, Number w_type,
                       const float* r, void* dx, float* dw, bool zero_centred, Stream stream) {
  const bool x_wide = x_type == Number::kFp32, w_wide = w_type == Number::kFp32;
  const auto of_narrow = !w_wide        ? norm_backward_of<bf16, bf16, bf16>
                         : zero_centred ? norm_backward_of<bf16, float, bf16>
                                        : norm_backward_of<bf16, float, float>;
  const auto of = !x_wide  ? of_narrow
                  : w_wide ? norm_backward_of<float, float, float>
                           : norm_backward_of<float, bf16, float>;
  of(dy, x, rows, w, r, dx, dw, zero_centred, stream);
}

void rotate(const void* x, const Rows& rows, Number type, int64_t rotating, const void* cos, const void* sin, void* y,
            bool backward, Stream stream) {
  if (rows.count() == 0) return;
  const float sign = backward ? -1.0F : 1.0F;
  (type == Number::kFp32 ? rotate_of<float> : rotate_of<bf16>)(x, rows, rotating / 2, cos, sin, y, sign, stream);
}

void silu_mul(const void* gate_up, int64_t rows, int64_t inner, Number type, void* y, Stream stream) {
  if (rows == 0) return;
  (type == Number::kFp32 ? silu_mul_of<float> : silu_mul_of<bf16>)(gate_up, rows, inner, y, stream);
}

void silu_mul_backward(const void* dy, const void* gate_up, int64_t rows, int64_t inner, Number type, void* d_gate_up,
                       Stream stream) {
  if (rows == 0) return;
  (type == Number::kFp32 ? silu_mul_backward_of<float> : silu_mul_backward_of<bf16>)(dy, gate_up, rows, inner,
                                                                                     d_gate_up, stream);
}

void soft_max_statistics(const void* logits, int64_t rows, int64_t vocabulary, Number type, const int64_t* target,
                         float* log_sum, float* log_p, Stream stream) {
  if (rows == 0) return;
  const auto of = type == Number::kFp32 ? soft_max_statistics_of<float> : soft_max_statistics_of<bf16>;
  of(logits, rows, vocabulary, target, log_sum, log_p, stream);
}

void soft_max_gradient(void* logits, int64_t rows, int64_t vocabulary, Number type, const int64_t* target,
                       const float* slope, const float* log_sum, Stream stream) {
  if (rows == 0) return;
  const auto of = type == Number::kFp32 ? soft_max_gradient_of<float> : soft_max_gradient_of<bf16>;
  of(logits, rows, vocabulary, target, slope, log_sum, stream);
}

}  // namespace lathe::kernels::cuda
