// The serving path of model/ops.h on a CPU in bf16, over the kernels of kernels/serving.h. Each function is asked for
// by ops.cpp when can_serve() holds for its input; the results agree with the ATen twins there up to the order of sums.
//
// Threads: any; work is split with at::parallel_for.
#pragma once

#include <ATen/core/Tensor.h>

namespace lathe::model::cpu {

// bf16, on the CPU, rows without gaps, no autograd.
bool can_serve(const at::Tensor& x);

// x [n, in], n <= kernels::kFewRows; w [out, in]; bias [out] or undefined.
at::Tensor linear_few_rows(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias);
bool few_rows(const at::Tensor& x);

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& w, double eps);
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);
at::Tensor silu_mul(const at::Tensor& gate_up);

}  // namespace lathe::model::cpu
