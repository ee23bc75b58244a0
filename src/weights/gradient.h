// Gradients as they leave a backward pass: factors, never a dense matrix of a weight's size.
//
// For W [out, in] and y = x Wᵀ the gradient is dW = dYᵀ X; with T graded tokens its rank is at most T, so (X, dY) is
// all there is to know. An embedding table also receives rows: dW[ids[i]] += dx[i].
//
// Memory: the tensors are shared handles; a collected gradient keeps activations of the graded rows alive.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "weights/weight_store.h"

namespace lathe::weights {

// dW of one parameter (all its parts at once: columns of dy and rows of W correspond).
struct MatrixGradient {
  std::vector<at::Tensor> x;    // each [t, in], the compute dtype
  std::vector<at::Tensor> dy;   // each [t, out], same t as x
  std::vector<at::Tensor> ids;  // each [n] int64: rows of a lookup
  std::vector<at::Tensor> dx;   // each [n, in], same n as ids
  bool empty() const { return x.empty() && ids.empty(); }
};

// Receives gradients while autograd walks back through one layer. Called on the thread that runs the backward pass.
class GradientSink {
 public:
  virtual ~GradientSink() = default;
  virtual void linear(const Parameter& weight, at::Tensor x, at::Tensor dy) = 0;
  virtual void lookup(const Parameter& table, at::Tensor ids, at::Tensor dx) = 0;
  virtual void vector(const Parameter& vector, at::Tensor gradient) = 0;  // [n] fp32
};

// All gradients of one step, indexed by Parameter::id. Matrices as factors, vectors dense in fp32.
class GradientSet final : public GradientSink {
 public:
  explicit GradientSet(size_t parameter_count) : matrices(parameter_count), vectors(parameter_count) {}
  void linear(const Parameter& weight, at::Tensor x, at::Tensor dy) override {
    matrices[weight.id].x.push_back(std::move(x));
    matrices[weight.id].dy.push_back(std::move(dy));
  }
  void lookup(const Parameter& table, at::Tensor ids, at::Tensor dx) override {
    matrices[table.id].ids.push_back(std::move(ids));
    matrices[table.id].dx.push_back(std::move(dx));
  }
  void vector(const Parameter& vector, at::Tensor gradient) override;  // adds up

  std::vector<MatrixGradient> matrices;
  std::vector<at::Tensor> vectors;  // undefined where nothing arrived
};

}  // namespace lathe::weights
