// Linear algebra on gradients in factored form.
//
// One part of a parameter, G [a, b] = dYᵀ X + (rows of a look-up): everything APOLLO asks of G without forming it.
//   projection   R = G Pᵀ = dYᵀ (X Pᵀ)   or   P G = (P dYᵀ) X
//   norm         ‖G‖² = <dY dYᵀ, X Xᵀ>, two T x T matrices
//   channel norms from the same matrices
// With look-up rows U at indices u, coalesced: ‖G‖² gains ‖U‖² + 2 <(dYᵀX)[u], U>, and so on.
//
// Threads: values; fp32 inside.
#pragma once

#include <ATen/core/Tensor.h>

#include "weights/gradient.h"

namespace lathe::optim {

// A parameter's factors, put together once for all its parts.
struct Factors {
  at::Tensor x;     // [T, b] as emitted
  at::Tensor dy;    // [T, out]
  at::Tensor rows;  // [u] int64, sorted and unique; undefined without look-ups
  at::Tensor sums;  // [u, b] fp32
};
Factors gather(const weights::MatrixGradient& gradient, const weights::Parameter& parameter);

class PartGradient {
 public:
  // `part` belongs to the factors' parameter.
  PartGradient(const Factors& factors, const weights::Part& part);

  int64_t rows() const { return a_; }
  int64_t columns() const { return b_; }
  bool tall() const { return a_ >= b_; }  // then the columns are projected, and channels are rows

  // tall: G Pᵀ [a, r]; wide: P G [r, b]; p is [r, smaller side] fp32.
  at::Tensor project(const at::Tensor& p) const;
  double squared_norm() const;
  // Squared norms of the rows (tall) or columns (wide): [larger side] fp32.
  at::Tensor channel_squared_norms() const;
  // Rows [begin, begin + count) of G, written into `out` [count, b] in the dtype of the factors or fp32.
  void dense_rows(int64_t begin, int64_t count, at::Tensor& out) const;
  at::ScalarType dtype() const { return dy_.scalar_type(); }
  bool has_lookup() const { return lookup_.defined(); }

 private:
  at::Tensor cross() const;  // (dYᵀX)[u], [u, b] fp32

  int64_t a_, b_;
  at::Tensor x_, dy_;             // [T, b], [T, a]
  at::Tensor x_wide_, dy_wide_;   // the same in fp32
  at::Tensor lookup_, sums_;      // as in Factors
};

}  // namespace lathe::optim
