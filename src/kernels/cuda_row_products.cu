#include <algorithm>

#include "kernels/cuda_common.cuh"
#include "kernels/cuda_row_products.h"

namespace lathe::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRun = 8;  // consecutive elements of one lane: 16 bytes of bf16
constexpr int kStrip = kWarp * kRun;

// A warp to a row.
__global__ void __launch_bounds__(kThreads)
    dot_rows(const bf16* m, int64_t rows, int64_t columns, int64_t stride, const float* x, float* y) {
  const int lane = threadIdx.x % kWarp;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < rows; row += step) {
    float sum = 0;
#pragma unroll 4
    for (int64_t at = lane * kRun; at < columns; at += kStrip) {
      const auto numbers = load<bf16, kRun>(m + row * stride + at);
      const auto low = load<float, kRun / 2>(x + at), high = load<float, kRun / 2>(x + at + kRun / 2);
#pragma unroll
      for (int i = 0; i < kRun / 2; ++i) {
        sum += widen(numbers.at[i]) * low.at[i];
        sum += widen(numbers.at[kRun / 2 + i]) * high.at[i];
      }
    }
    sum = lane_sum<kWarp>(sum);
    if (lane == 0) y[row] = sum;
  }
}

// A block to 256 columns of a slice of the rows; its warps take rows in turn, and are added up in order.
__global__ void __launch_bounds__(kThreads)
    sum_rows(const bf16* m, int64_t rows, int64_t columns, int64_t stride, const float* x, float* partial) {
  __shared__ float sums[kWarps][kStrip];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t first = blockIdx.x * kStrip, at = first + lane * kRun;
  const int64_t begin = rows * blockIdx.y / kRowSumPartials, end = rows * (blockIdx.y + 1) / kRowSumPartials;
  float own[kRun] = {};
  if (at < columns) {
#pragma unroll 4
    for (int64_t row = begin + warp; row < end; row += kWarps) {
      const auto numbers = load<bf16, kRun>(m + row * stride + at);
      const float factor = x[row];
#pragma unroll
      for (int i = 0; i < kRun; ++i) own[i] += factor * widen(numbers.at[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) sums[warp][lane * kRun + i] = own[i];
  __syncthreads();
  if (first + threadIdx.x >= columns) return;
  float sum = 0;
#pragma unroll
  for (int other = 0; other < kWarps; ++other) sum += sums[other][threadIdx.x];
  partial[blockIdx.y * columns + first + threadIdx.x] = sum;
}

}  // namespace

void row_dots(const void* m, int64_t rows, int64_t columns, int64_t stride, const float* x, float* y,
              CUstream_st* stream) {
  if (rows == 0) return;
  const auto grid = static_cast<unsigned>(std::min<int64_t>((rows + kWarps - 1) / kWarps, 8 * kMaxGrid));
  dot_rows<<<grid, kThreads, 0, stream>>>(static_cast<const bf16*>(m), rows, columns, stride, x, y);
}

void weighted_row_sum(const void* m, int64_t rows, int64_t columns, int64_t stride, const float* x, float* partial,
                      CUstream_st* stream) {
  if (columns == 0) return;
  const dim3 grid(static_cast<unsigned>((columns + kStrip - 1) / kStrip), kRowSumPartials);
  sum_rows<<<grid, kThreads, 0, stream>>>(static_cast<const bf16*>(m), rows, columns, stride, x, partial);
}

}  // namespace lathe::kernels::cuda
