#include "model/cpu_ops.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels/serving.h"
#include "kernels/soft_max.h"
#include "model/saved_pointer.h"

namespace lathe::model::cpu {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

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

bool can_run(const at::Tensor& x) {
  return x.scalar_type() == at::kBFloat16 && x.device().is_cpu() && x.stride(-1) == 1;
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

namespace {

at::Tensor normed(const at::Tensor& x, const at::Tensor& w, double eps) {
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

// dw is summed by so many stretches of rows, whatever the number of threads.
constexpr int64_t kNormStretches = 8;

struct SinkRmsNorm : torch::autograd::Function<SinkRmsNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const weights::Parameter* weight, double eps,
                            weights::GradientSink* sink) {
    context->save_for_backward({x});
    context->saved_data["weight"] = as_int(weight);
    context->saved_data["sink"] = as_int(sink);
    context->saved_data["eps"] = eps;
    return normed(x, weight->data, eps);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto* weight = as_pointer<const weights::Parameter>(context, "weight");
    const at::Tensor x = context->get_saved_variables()[0].contiguous(), dy = gradients[0].contiguous();
    const auto eps = static_cast<float>(context->saved_data.at("eps").toDouble());
    const int64_t n = x.size(-1), rows = x.numel() / n;
    at::Tensor dx = at::empty(x.sizes(), x.options()), dw = at::zeros({kNormStretches, n}, at::kFloat);
    const uint16_t *dy_data = data(dy), *x_data = data(x), *w_data = data(weight->data);
    uint16_t* dx_data = mutable_data(dx);
    auto* dw_data = dw.mutable_data_ptr<float>();
    const int64_t grain = (grain_rows(n) * kNormStretches + rows - 1) / rows;
    at::parallel_for(0, kNormStretches, grain, [&](int64_t begin, int64_t end) {
      for (int64_t stretch = begin; stretch < end; ++stretch) {
        for (int64_t row = stretch * rows / kNormStretches; row < (stretch + 1) * rows / kNormStretches; ++row)
          kernels::rms_norm_backward_row(dy_data + row * n, x_data + row * n, w_data, dx_data + row * n,
                                         dw_data + stretch * n, n, eps);
      }
    });
    as_pointer<weights::GradientSink>(context, "sink")->vector(*weight, dw.sum(0));
    return {dx, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const weights::Parameter& weight, double eps, weights::GradientSink* sink) {
  if (sink && at::GradMode::is_enabled()) return SinkRmsNorm::apply(x, &weight, eps, sink);
  return normed(x, weight.data, eps);
}

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back) {
  const int64_t rows = x.size(0), heads = x.size(1), size = x.size(2), half = size / 2;
  const at::Tensor angle_sin = back ? sin.neg() : sin;
  at::Tensor y = at::empty({rows, heads, size}, x.options());
  const uint16_t *x_data = data(x), *cos_data = data(cos), *sin_data = data(angle_sin);
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
      const uint16_t* gate = in + row * 2 * inner;
      kernels::silu_mul_row(gate, gate + inner, out + row * inner, inner);
    }
  });
  return y;
}

at::Tensor silu_mul_backward(const at::Tensor& dy, const at::Tensor& gate_up) {
  const int64_t rows = gate_up.size(0), inner = gate_up.size(1) / 2;
  at::Tensor d_gate_up = at::empty({rows, 2 * inner}, gate_up.options());
  const uint16_t *in = data(gate_up), *dy_data = data(dy);
  uint16_t* out = mutable_data(d_gate_up);
  at::parallel_for(0, rows, grain_rows(inner), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint16_t* gate = in + row * 2 * inner;
      uint16_t* d_gate = out + row * 2 * inner;
      kernels::silu_mul_backward_row(dy_data + row * inner, gate, gate + inner, d_gate, d_gate + inner, inner);
    }
  });
  return d_gate_up;
}

SoftMaxStatistics soft_max_statistics(const at::Tensor& logits, const at::Tensor& targets) {
  const int64_t rows = logits.size(0), n = logits.size(1);
  SoftMaxStatistics out{.log_sum = at::empty({rows}, at::kFloat), .log_p = at::empty({rows}, at::kFloat)};
  const uint16_t* in = data(logits);
  const auto* target = targets.const_data_ptr<int64_t>();
  auto *log_sum = out.log_sum.mutable_data_ptr<float>(), *log_p = out.log_p.mutable_data_ptr<float>();
  at::parallel_for(0, rows, grain_rows(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const kernels::SoftMaxRow found = kernels::soft_max_row(in + row * n, n, target[row]);
      log_sum[row] = found.log_sum;
      log_p[row] = found.log_p;
    }
  });
  return out;
}

void soft_max_gradient_(at::Tensor& logits, const at::Tensor& targets, const at::Tensor& slopes,
                        const at::Tensor& log_sum) {
  const int64_t rows = logits.size(0), n = logits.size(1);
  uint16_t* in_out = mutable_data(logits);
  const auto* target = targets.const_data_ptr<int64_t>();
  const auto *slope = slopes.const_data_ptr<float>(), *sum = log_sum.const_data_ptr<float>();
  at::parallel_for(0, rows, grain_rows(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      kernels::soft_max_gradient_row(in_out + row * n, n, target[row], slope[row], sum[row]);
  });
}

}  // namespace lathe::model::cpu
