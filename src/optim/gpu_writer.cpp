#include "optim/gpu_writer.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "base/result.h"
#include "kernels/cuda_row_products.h"
#include "kernels/cuda_update.h"

namespace lathe::optim {
namespace {

namespace k = kernels::cuda;

k::Stream stream_of(const at::Tensor& t) {
  return c10::cuda::getCurrentCUDAStream(t.device().index()).stream();
}

uint16_t* bits(const at::Tensor& t) {
  return reinterpret_cast<uint16_t*>(t.data_ptr<at::BFloat16>());
}

}  // namespace

GpuWriter::GpuWriter(at::Device device, int64_t updates)
    : sums_(at::zeros({updates, k::kStatisticsRows, k::kStatisticsColumns},
                      at::TensorOptions().device(device).dtype(at::kDouble))) {}

void GpuWriter::write(const at::Tensor& w, int64_t first, const at::Tensor& u, const at::Tensor& channels, bool by_row,
                      const kernels::Update& update) {
  const auto slot = std::ssize(elements_);
  LATHE_CHECK(slot < sums_.size(0) && u.is_contiguous());
  double* sums = sums_.data_ptr<double>() + slot * k::kStatisticsRows * k::kStatisticsColumns;
  const int64_t n = u.numel();
  k::ChannelScale scale;
  if (channels.defined()) scale = {channels.const_data_ptr<float>(), u.size(-1), by_row};
  const c10::cuda::CUDAGuard guard(w.device());
  const k::Stream stream = stream_of(w);
  if (w.scalar_type() == at::kFloat) {
    k::update_fp32(w.data_ptr<float>() + first, u.const_data_ptr<float>(), first, n, update, scale, sums, stream);
  } else if (u.scalar_type() == at::kFloat) {
    k::update_bf16(bits(w) + first, u.const_data_ptr<float>(), first, n, update, scale, sums, stream);
  } else {
    k::update_bf16(bits(w) + first, bits(u), first, n, update, scale, sums, stream);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  elements_.push_back(n);
}

std::vector<kernels::UpdateStats> GpuWriter::statistics() {
  const at::Tensor sums = sums_.sum(1).cpu();
  const auto* row = sums.const_data_ptr<double>();
  std::vector<kernels::UpdateStats> stats;
  for (const int64_t n : elements_) {
    stats.push_back(
        {.elements = n, .changed = static_cast<int64_t>(row[0]), .intended_squared = row[1], .realised_dot = row[2]});
    row += k::kStatisticsColumns;
  }
  return stats;
}

void gpu_adam_direction(const at::Tensor& g, const at::Tensor& m, const at::Tensor& v,
                        const kernels::AdamCoefficients& coefficients) {
  const c10::cuda::CUDAGuard guard(g.device());
  k::adam_direction(g.data_ptr<float>(), m.data_ptr<float>(), v.data_ptr<float>(), g.numel(), coefficients,
                    stream_of(g));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

bool can_multiply_on_gpu(const at::Tensor& m) {
  const auto whole = [](int64_t n) { return n % 8 == 0; };
  return m.is_cuda() && m.scalar_type() == at::kBFloat16 && m.stride(1) == 1 && whole(m.stride(0)) &&
         whole(m.size(1)) && reinterpret_cast<uintptr_t>(m.const_data_ptr()) % 16 == 0;
}

at::Tensor gpu_times_vector(const at::Tensor& m, const at::Tensor& x) {
  const at::Tensor in = x.contiguous(), y = at::empty({m.size(0)}, x.options());
  const c10::cuda::CUDAGuard guard(m.device());
  k::row_dots(m.const_data_ptr(), m.size(0), m.size(1), m.stride(0), in.const_data_ptr<float>(), y.data_ptr<float>(),
              stream_of(m));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

at::Tensor gpu_vector_times(const at::Tensor& x, const at::Tensor& m) {
  const at::Tensor in = x.contiguous(), partial = at::empty({k::kRowSumPartials, m.size(1)}, x.options());
  const c10::cuda::CUDAGuard guard(m.device());
  k::weighted_row_sum(m.const_data_ptr(), m.size(0), m.size(1), m.stride(0), in.const_data_ptr<float>(),
                      partial.data_ptr<float>(), stream_of(m));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return partial.sum(0);
}

ProjectedMoments gpu_moments(const at::Tensor& r, const at::Tensor& last_m, const at::Tensor& last_v,
                             const kernels::AdamCoefficients& coefficients) {
  const auto pointer = [](const at::Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; };
  ProjectedMoments out{.m = at::empty_like(r), .v = at::empty_like(r)};
  const at::Tensor sums = at::empty({k::kNormRows, 2}, r.options().dtype(at::kDouble));
  const c10::cuda::CUDAGuard guard(r.device());
  k::apollo_moments(r.const_data_ptr<float>(), pointer(last_m), pointer(last_v), out.m.data_ptr<float>(),
                    out.v.data_ptr<float>(), r.numel(), coefficients, sums.data_ptr<double>(), stream_of(r));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  out.norms = sums.sum(0).sqrt_();
  return out;
}

}  // namespace lathe::optim
