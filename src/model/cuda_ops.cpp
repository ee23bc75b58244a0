#include "model/cuda_ops.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels/cuda_layers.h"
#include "model/saved_pointer.h"

namespace lathe::model::cuda {
namespace {

namespace k = kernels::cuda;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

k::Number number(const at::Tensor& t) {
  return t.scalar_type() == at::kFloat ? k::Number::kFp32 : k::Number::kBf16;
}

// The rows of t's last dimension.
k::Rows rows_of(const at::Tensor& t) {
  if (t.dim() == 3) return {t.size(0), t.size(1), t.stride(0), t.stride(1), t.size(2)};
  if (t.dim() == 2) return {t.size(0), 1, t.stride(0), 0, t.size(1)};
  return {1, 1, 0, 0, t.size(0)};
}

// Runs `launch` on the thread's stream of x's device.
template <class Launch>
void queue(const at::Tensor& x, Launch&& launch) {
  const c10::cuda::CUDAGuard guard(x.device());
  launch(c10::cuda::getCurrentCUDAStream(x.device().index()).stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

struct Normed {
  at::Tensor y;  // x's shape
  at::Tensor r;  // [rows] fp32
};

Normed normed(const at::Tensor& x, const at::Tensor& w, double eps, bool zero_centred) {
  const bool wide = x.scalar_type() == at::kFloat || (w.scalar_type() == at::kFloat && !zero_centred);
  Normed out{.y = at::empty(x.sizes(), x.options().dtype(wide ? at::kFloat : at::kBFloat16)),
             .r = at::empty({x.numel() / x.size(-1)}, x.options().dtype(at::kFloat))};
  queue(x, [&](k::Stream stream) {
    k::rms_norm(x.const_data_ptr(), rows_of(x), number(x), w.const_data_ptr(), number(w), out.y.mutable_data_ptr(),
                out.r.mutable_data_ptr<float>(), static_cast<float>(eps), zero_centred, stream);
  });
  return out;
}

struct SinkRmsNorm : torch::autograd::Function<SinkRmsNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const weights::Parameter* weight, double eps,
                            bool zero_centred, weights::GradientSink* sink) {
    const Normed out = normed(x, weight->data, eps, zero_centred);
    context->save_for_backward({x, out.r});
    context->saved_data["weight"] = as_int(weight);
    context->saved_data["sink"] = as_int(sink);
    context->saved_data["zero_centred"] = zero_centred;
    return out.y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto* weight = as_pointer<const weights::Parameter>(context, "weight");
    auto* sink = as_pointer<weights::GradientSink>(context, "sink");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &r = saved[1], &w = weight->data, dy = gradients[0].contiguous();
    const at::Tensor dx = at::empty(x.sizes(), x.options());
    const at::Tensor partial = at::empty({k::kNormPartials, x.size(-1)}, x.options().dtype(at::kFloat));
    queue(x, [&](k::Stream stream) {
      k::rms_norm_backward(dy.const_data_ptr(), x.const_data_ptr(), rows_of(x), number(x), w.const_data_ptr(),
                           number(w), r.const_data_ptr<float>(), dx.mutable_data_ptr(),
                           partial.mutable_data_ptr<float>(), context->saved_data.at("zero_centred").toBool(), stream);
    });
    sink->vector(*weight, partial.sum(0));
    return {dx, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

bool can_run(const at::Tensor& x) {
  return x.is_cuda() && (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat) && x.dim() >= 1 &&
         x.dim() <= 3 && x.stride(-1) == 1;
}

at::Tensor rms_norm(const at::Tensor& x, const weights::Parameter& weight, double eps, NormStyle style,
                    weights::GradientSink* sink) {
  const bool zero_centred = style == NormStyle::kZeroCentred;
  if (sink && at::GradMode::is_enabled()) return SinkRmsNorm::apply(x, &weight, eps, zero_centred, sink);
  return normed(x, weight.data, eps, zero_centred).y;
}

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back) {
  at::Tensor y = at::empty(x.sizes(), x.options());
  queue(x, [&](k::Stream stream) {
    k::rotate(x.const_data_ptr(), rows_of(x), number(x), 2 * cos.size(1), cos.const_data_ptr(), sin.const_data_ptr(),
              y.mutable_data_ptr(), back, stream);
  });
  return y;
}

at::Tensor silu_mul(const at::Tensor& gate_up) {
  const int64_t rows = gate_up.size(0), inner = gate_up.size(1) / 2;
  at::Tensor y = at::empty({rows, inner}, gate_up.options());
  queue(gate_up, [&](k::Stream stream) {
    k::silu_mul(gate_up.const_data_ptr(), rows, inner, number(gate_up), y.mutable_data_ptr(), stream);
  });
  return y;
}

at::Tensor silu_mul_backward(const at::Tensor& dy, const at::Tensor& gate_up) {
  at::Tensor d_gate_up = at::empty(gate_up.sizes(), gate_up.options());
  queue(gate_up, [&](k::Stream stream) {
    k::silu_mul_backward(dy.const_data_ptr(), gate_up.const_data_ptr(), gate_up.size(0), gate_up.size(1) / 2,
                         number(gate_up), d_gate_up.mutable_data_ptr(), stream);
  });
  return d_gate_up;
}

SoftMaxStatistics soft_max_statistics(const at::Tensor& logits, const at::Tensor& targets) {
  const auto options = logits.options().dtype(at::kFloat);
  SoftMaxStatistics out{.log_sum = at::empty({logits.size(0)}, options), .log_p = at::empty({logits.size(0)}, options)};
  queue(logits, [&](k::Stream stream) {
    k::soft_max_statistics(logits.const_data_ptr(), logits.size(0), logits.size(1), number(logits),
                           targets.const_data_ptr<int64_t>(), out.log_sum.mutable_data_ptr<float>(),
                           out.log_p.mutable_data_ptr<float>(), stream);
  });
  return out;
}

void soft_max_gradient_(at::Tensor& logits, const at::Tensor& targets, const at::Tensor& slopes,
                        const at::Tensor& log_sum) {
  queue(logits, [&](k::Stream stream) {
    k::soft_max_gradient(logits.mutable_data_ptr(), logits.size(0), logits.size(1), number(logits),
                         targets.const_data_ptr<int64_t>(), slopes.const_data_ptr<float>(),
                         log_sum.const_data_ptr<float>(), stream);
  });
}

}  // namespace lathe::model::cuda
