// GpuWriter: updates of weights on a GPU, queued one after the other, their statistics read once.
//
// Only in a build with CUDA. Threads: one. Asynchronous: on the thread's stream, until statistics() waits.
// Memory: 24 KB on the device per update.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/adam.h"
#include "kernels/rounding.h"

namespace lathe::optim {

class GpuWriter {
 public:
  GpuWriter(at::Device device, int64_t updates);

  // W <- round(W - step U - decay W) for the elements of `w` from `first` on, as many as `u` (bf16 or fp32, no gaps)
  // has. `channels`, if defined, multiplies the rows (by_row) or columns of u. At most `updates` calls.
  void write(const at::Tensor& w, int64_t first, const at::Tensor& u, const at::Tensor& channels, bool by_row,
             const kernels::Update& update);

  // Of each write(), in order.
  std::vector<kernels::UpdateStats> statistics();

 private:
  at::Tensor sums_;                // [updates, rows, 3] fp64
  std::vector<int64_t> elements_;  // of each write
};

// kernels/adam.h, on a GPU: all [n] fp32, no gaps.
void gpu_adam_direction(const at::Tensor& g, const at::Tensor& m, const at::Tensor& v,
                        const kernels::AdamCoefficients& coefficients);

// kernels/row_products.h, on a GPU: m [r, c] bf16, x fp32; m x [r], and xᵀ m [c].
bool can_multiply_on_gpu(const at::Tensor& m);
at::Tensor gpu_times_vector(const at::Tensor& m, const at::Tensor& x);
at::Tensor gpu_vector_times(const at::Tensor& x, const at::Tensor& m);

// What apollo_measure() asks of a projected gradient as a whole, in two kernels instead of a score.
struct ProjectedMoments {
  at::Tensor m, v;   // the next moments
  at::Tensor norms;  // [2] fp64: ‖R̃‖, ‖R‖
};
// r fp32 without gaps; last_m and last_v alike, or undefined.
ProjectedMoments gpu_moments(const at::Tensor& r, const at::Tensor& last_m, const at::Tensor& last_v,
                             const kernels::AdamCoefficients& coefficients);

}  // namespace lathe::optim
