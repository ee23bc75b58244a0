// Gradients as they leave a backward pass: as factors, so that no dense matrix of a weight's size need exist.
//
// For W [out, in] and y = x Wᵀ the gradient is dW = dYᵀ X; with T graded tokens its rank is at most T, so (X, dY) is
// all there is to know. An embedding table also receives rows: dW[ids[i]] += dx[i]. Where factors would outgrow the
// matrix, or where an oracle is wanted, a GradientSet adds them up to the matrix instead.
//
// Memory: factors are shared handles; a collected gradient keeps activations of the graded rows alive. A dense gradient
// is 4 bytes per weight.
// Threads: one, that of the backward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "weights/weight_store.h"

namespace lathe::weights {

// dW of one parameter (all its parts at once: columns of dy and rows of W correspond): factors, or their sum.
struct MatrixGradient {
  std::vector<at::Tensor> x;    // each [t, in], the compute dtype
  std::vector<at::Tensor> dy;   // each [t, out], same t as x
  std::vector<at::Tensor> ids;  // each [n] int64: rows of a lookup
  std::vector<at::Tensor> dx;   // each [n, in], same n as ids
  at::Tensor dense;             // [out, in] fp32; where it is defined, there are no factors
  bool empty() const { return x.empty() && ids.empty() && !dense.defined(); }
};

// Receives gradients while autograd walks back through one layer. Called on the thread that runs the backward pass.
class GradientSink {
 public:
  virtual ~GradientSink() = default;
  virtual void linear(const Parameter& weight, at::Tensor x, at::Tensor dy) = 0;
  virtual void lookup(const Parameter& table, at::Tensor ids, at::Tensor dx) = 0;
  virtual void vector(const Parameter& vector, at::Tensor gradient) = 0;  // [n] fp32
};

// How a GradientSet keeps the gradients of matrices.
enum class GradientForm {
  kFactors,
  kDense,    // summed in fp32: exact but for fp32's own rounding, at 4 bytes per weight
  kSmaller,  // as factors, until they would take more memory than the dense matrix
};

// All gradients of one step, indexed by Parameter::id; what arrives for one parameter adds up. Vectors are dense, fp32.
class GradientSet final : public GradientSink {
 public:
  explicit GradientSet(size_t parameter_count, GradientForm form = GradientForm::kFactors)
      : matrices(parameter_count), vectors(parameter_count), form_(form) {}
  void linear(const Parameter& weight, at::Tensor x, at::Tensor dy) override;
  void lookup(const Parameter& table, at::Tensor ids, at::Tensor dx) override;
  void vector(const Parameter& vector, at::Tensor gradient) override;

  std::vector<MatrixGradient> matrices;
  std::vector<at::Tensor> vectors;  // undefined where nothing arrived

 private:
  void settle(const Parameter& parameter, MatrixGradient& gradient) const;  // into the form asked for

  GradientForm form_;
};

}  // namespace lathe::weights
