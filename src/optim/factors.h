// Linear algebra on gradients in factored form.
//
// One part of a parameter, G [a, b] = dYᵀ X + (rows of a look-up): everything APOLLO asks of G without forming it.
//   projection   R = G Pᵀ = dYᵀ (X Pᵀ)   or   P G = (P dYᵀ) X
//   norm         ‖G‖² = <dY dYᵀ, X Xᵀ>, two T x T matrices
//   channel norms from the same matrices
// With look-up rows U at indices u, coalesced: ‖G‖² gains ‖U‖² + 2 <(dYᵀX)[u], U>, and so on.
//
// Cost: the Gram matrices take T² (a + b) products where the dense gradient takes T a b: more of them once T exceeds
// the smaller side, but never a matrix of the weight's size.
// Threads: values; fp32 inside.
#pragma once

#include <ATen/core/Tensor.h>

#include "weights/gradient.h"

namespace lathe::optim {

// A parameter's factors, put together once for all its parts.
struct Factors {
  at::Tensor x;                // [T, b] as emitted
  at::Tensor dy;               // [T, out]
  at::Tensor rows;             // [u] int64, sorted and unique; undefined without look-ups
  at::Tensor sums;             // [u, b] fp32
  at::Tensor x_wide, dy_wide;  // x and dy in fp32
  at::Tensor x_gram;           // X Xᵀ [T, T] fp32
};
Factors gather(const weights::MatrixGradient& gradient, const weights::Parameter& parameter);

// Rows of one part's G on demand: all that a commit needs.
class PartRows {
 public:
  // `part` belongs to the factors' parameter.
  PartRows(const Factors& factors, const weights::Part& part);

  int64_t rows() const { return a_; }
  int64_t columns() const { return b_; }
  bool tall() const { return a_ >= b_; }  // then the columns are projected, and channels are rows
  at::ScalarType dtype() const { return dy_.scalar_type(); }

  // Rows [begin, begin + count) of G, written into `out` [count, b] of dtype().
  void write(int64_t begin, int64_t count, at::Tensor& out) const;
  // The same rows with factors, and so results, in fp32.
  PartRows widened() const;

 private:
  int64_t a_, b_;
  at::Tensor x_, dy_;         // [T, b], [T, a]
  at::Tensor lookup_, sums_;  // as in Factors
};

// What a proposal asks of one part's G. Lives as long as the Factors.
class PartGradient {
 public:
  PartGradient(const Factors& factors, const weights::Part& part);

  const PartRows& dense() const { return dense_; }
  bool tall() const { return dense_.tall(); }

  // tall: G Pᵀ [a, r]; wide: P G [r, b]; p is [r, smaller side] fp32.
  at::Tensor project(const at::Tensor& p) const;
  double squared_norm() const;
  // Squared norms of the rows (tall) or columns (wide): [larger side] fp32.
  at::Tensor channel_squared_norms() const;

 private:
  bool has_lookup() const { return factors_.rows.defined(); }
  at::Tensor lookup_gain() const;  // what look-ups add to the squares of G's elements, [u, b] fp32

  const Factors& factors_;
  PartRows dense_;
  at::Tensor dy_;  // [T, a] fp32
};

}  // namespace lathe::optim
