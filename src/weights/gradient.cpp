#include "weights/gradient.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

namespace lathe::weights {
namespace {

size_t factor_bytes(const MatrixGradient& gradient) {
  size_t bytes = 0;
  for (const auto* tensors : {&gradient.x, &gradient.dy, &gradient.dx}) {
    for (const at::Tensor& t : *tensors) bytes += t.nbytes();
  }
  return bytes;
}

// dense += dyᵀ x. A GPU multiplies bf16 as it is, with sums in fp32: the same digits as from fp32 copies, at the rate
// of its tensor cores.
void add_product(at::Tensor& dense, const at::Tensor& dy, const at::Tensor& x) {
  if (dy.is_cuda() && dy.scalar_type() == at::kBFloat16 && x.scalar_type() == at::kBFloat16) {
    at::addmm_out(dense, dense, dy.t(), x, at::kFloat);
  } else {
    dense.addmm_(dy.to(at::kFloat).t(), x.to(at::kFloat));
  }
}

// Adds the factors to the dense matrix and drops them.
void sum_up(MatrixGradient& gradient, const Parameter& parameter) {
  at::Tensor& dense = gradient.dense;
  if (!dense.defined()) dense = at::zeros(parameter.data.sizes(), parameter.data.options().dtype(at::kFloat));
  for (size_t i = 0; i < gradient.x.size(); ++i) add_product(dense, gradient.dy[i], gradient.x[i]);
  for (size_t i = 0; i < gradient.ids.size(); ++i) {
    dense.index_add_(0, gradient.ids[i], gradient.dx[i].to(at::kFloat));
  }
  gradient = {.dense = dense};
}

}  // namespace

void GradientSet::linear(const Parameter& weight, at::Tensor x, at::Tensor dy) {
  MatrixGradient& gradient = matrices[weight.id];
  gradient.x.push_back(std::move(x));
  gradient.dy.push_back(std::move(dy));
  settle(weight, gradient);
}

void GradientSet::lookup(const Parameter& table, at::Tensor ids, at::Tensor dx) {
  MatrixGradient& gradient = matrices[table.id];
  gradient.ids.push_back(std::move(ids));
  gradient.dx.push_back(std::move(dx));
  settle(table, gradient);
}

void GradientSet::settle(const Parameter& parameter, MatrixGradient& gradient) const {
  const at::NoGradGuard no_grad;
  const auto dense_bytes = sizeof(float) * static_cast<size_t>(parameter.data.numel());
  const bool outgrown = gradient.dense.defined() || factor_bytes(gradient) > dense_bytes;
  if (form_ == GradientForm::kDense || (form_ == GradientForm::kSmaller && outgrown)) sum_up(gradient, parameter);
}

void GradientSet::vector(const Parameter& vector, at::Tensor gradient) {
  at::Tensor& sum = vectors[vector.id];
  sum = sum.defined() ? sum + gradient : std::move(gradient);
}

}  // namespace lathe::weights
