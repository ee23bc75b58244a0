#include "model/cpu_ops.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include "kernels/serving.h"

namespace lathe::model::cpu {
namespace {

// Elements one thread should have before a second is worth waking.
constexpr int64_t kGrain = 16 * 1024;

const uint16_t* data(const at::Tensor& t) {
  return reinterpret_cast<const uint16_t*>(t.const_data_ptr<at::BFloat16>());
}
uint16_t* mutable_data(at::Tensor& t) {
  return reinterpret_cast<uint16_t*>(t.mutable_data_ptr<at::BFloat16>());
}

int64_t grain_rows(int64_t row_elements) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row_elements));
}

}  // namespace

bool can_serve(const at::Tensor& x) {
  return x.scalar_type() == at::kBFloat16 && x.device().is_cpu() && x.stride(-1) == 1 && !at::GradMode::is_enabled();
}

bool few_rows(const at::Tensor& x) {
  return x.dim() == 2 && x.size(0) <= kernels::kFewRows;
}

at::Tensor linear_few_rows(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias) {
  const int64_t rows = x.size(0), in = w.size(1), out = w.size(0);
  const at::Tensor packed = x.contiguous();
  at::Tensor wide = at::empty({rows, in}, at::kFloat), y = at::empty({rows, out}, x.options());
  kernels::widen_all(data(packed), wide.mutable_data_ptr<float>(), rows * in);
  const float* x_data = wide.const_data_ptr<float>();
  const uint16_t *w_data = data(w), *bias_data = bias.defined() ? data(bias) : nullptr;
  uint16_t* y_data = mutable_data(y);
  at::parallel_for(0, out, grain_rows(in), [&](int64_t begin, int64_t end) {
    kernels::linear_few_rows(w_data, x_data, bias_data, y_data, rows, in, out, begin, end);
  });
  return y;
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& w, double eps) {
  // A head of q or k is a row here too; rows of either may lie apart.
  const at::Tensor packed = x.contiguous();
  const int64_t n = x.size(-1), rows = x.numel() / n;
  at::Tensor y = at::empty(x.sizes(), x.options());
  const uint16_t *x_data = data(packed), *w_data = data(w);
  uint16_t* y_data = mutable_data(y);
  at::parallel_for(0, rows, grain_rows(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      kernels::rms_norm_row(x_data + row * n, w_data, y_data + row * n, n, static_cast<float>(eps));
  });
  return y;
}

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t rows = x.size(0), heads = x.size(1), size = x.size(2), half = size / 2;
  at::Tensor y = at::empty({rows, heads, size}, x.options());
  const uint16_t *x_data = data(x), *cos_data = data(cos), *sin_data = data(sin);
  uint16_t* y_data = mutable_data(y);
  at::parallel_for(0, rows, grain_rows(heads * size), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t head = 0; head < heads; ++head) {
        kernels::rotate_head(x_data + row * x.stride(0) + head * x.stride(1), cos_data + row * half,
                             sin_data + row * half, y_data + (row * heads + head) * size, half);
      }
    }
  });
  return y;
}

at::Tensor silu_mul(const at::Tensor& gate_up) {
  const int64_t rows = gate_up.size(0), inner = gate_up.size(1) / 2;
  at::Tensor y = at::empty({rows, inner}, gate_up.options());
  const uint16_t* in = data(gate_up);
  uint16_t* out = mutable_data(y);
  at::parallel_for(0, rows, grain_rows(inner), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint16_t* gate = in + row * gate_up.stride(0);
      kernels::silu_mul_row(gate, gate + inner, out + row * inner, inner);
    }
  });
  return y;
}

}  // namespace lathe::model::cpu
