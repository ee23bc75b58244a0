// One part's gradient as the optimizer reads it: from factors, without forming it, or from a dense matrix.
//
// G [a, b] = dYᵀ X + (rows of an embedding lookup), and everything APOLLO asks of it:
//   projection   R = G Pᵀ = dYᵀ (X Pᵀ)   or   P G = (P dYᵀ) X
//   norm         ‖G‖² = <dY dYᵀ, X Xᵀ>, two T x T matrices; channel norms from the same matrices
//   rows         for the commit, a tile at a time
// With lookup rows U at indices u, coalesced: ‖G‖² gains ‖U‖² + 2 <(dYᵀX)[u], U>, and so on.
//
// Cost: the T x T matrices take T² (a + b) products where G takes T a b. Beyond T = a b / (a + b), and sooner in bf16,
// whose products are cheaper, the norms are taken from G itself, formed a tile at a time: never a matrix of the
// weight's size.
// Memory: handles to the factors, or to the dense matrix.
// Threads: values; fp32 inside, but for tiles of G, which have the factors' dtype.
#pragma once

#include <ATen/core/Tensor.h>

#include "weights/gradient.h"

namespace lathe::optim {

// A parameter's gradient, put together once for all its parts: `dense`, or all the others.
struct ParameterGradient {
  at::Tensor x;          // [T, b] as emitted
  at::Tensor dy;         // [T, out]
  at::Tensor rows;       // [u] int64, sorted and unique; undefined without lookups
  at::Tensor rows_here;  // the same on the CPU
  at::Tensor sums;       // [u, b] fp32
  at::Tensor dense;      // [out, b] fp32
};
ParameterGradient gather(const weights::MatrixGradient& gradient, const weights::Parameter& parameter);

// A GPU's tile: small enough for its cache, large enough to keep it busy.
constexpr int64_t kGpuTileElements = int64_t{1} << 23;

// How many rows of `columns` elements make a tile of at most `elements`, but one at least. The tiles are of one size,
// and a multiple of `multiple` of them if there are rows enough: so many threads get the same work.
int64_t tile_rows(int64_t rows, int64_t columns, int64_t elements, int64_t multiple = 1);

// Tiles are a multiple of this where they are cut from a matrix that exists. Small ones would be slow to form: each
// time the other factor is packed again.
constexpr int64_t kFormedTiles = 16;

// Rows of one part's G on demand: all that a commit needs.
class PartRows {
 public:
  // `part` belongs to the gradient's parameter.
  PartRows(const ParameterGradient& gradient, const weights::Part& part);

  int64_t rows() const { return a_; }
  int64_t columns() const { return b_; }
  bool tall() const { return a_ >= b_; }  // then the columns are projected, and channels are rows
  at::Device device() const { return dense_.defined() ? dense_.device() : dy_.device(); }
  // Of what read() gives: the factors', but on a GPU, where a product of bf16 factors leaves the tensor cores in fp32,
  // fp32.
  at::ScalarType dtype() const;
  bool formed() const { return dense_.defined(); }

  // Rows [begin, begin + count) of G [count, b]: where they lie if G is dense, else written into `scratch`, of count *
  // b elements of dtype() at least.
  at::Tensor read(int64_t begin, int64_t count, const at::Tensor& scratch) const;
  // The same rows with factors, and so results, in fp32.
  PartRows widened() const;
  // The same rows, formed in `buffer`, of a * b elements of dtype() at least; as they are if G is dense.
  PartRows formed_in(const at::Tensor& buffer) const;

 private:
  int64_t a_, b_;
  at::Tensor x_, dy_;                       // [T, b], [T, a]
  at::Tensor lookup_, lookup_here_, sums_;  // as in ParameterGradient
  at::Tensor dense_;                        // [a, b]; then nothing else counts
};

struct SquaredNorms {
  at::Tensor sum;       // [] fp64; reading it waits for a GPU
  at::Tensor channels;  // of the rows (tall) or columns (wide): [larger side] fp32; undefined if not asked for
  double total() const { return sum.item<double>(); }
};

// What a proposal asks of one part's G. Lives as long as the ParameterGradient.
class PartGradient {
 public:
  PartGradient(const ParameterGradient& gradient, const weights::Part& part, int64_t tile_elements);

  const PartRows& rows() const { return rows_; }
  bool tall() const { return rows_.tall(); }

  // Whether the T x T matrices are the cheaper way to the norms.
  bool by_gram() const;
  // From now on norms and rows come from G as a whole, formed in `buffer` (PartRows::formed_in).
  void form_in(const at::Tensor& buffer) { rows_ = rows_.formed_in(buffer); }

  // tall: G Pᵀ [a, r]; wide: P G [r, b]; p is [r, smaller side] fp32.
  at::Tensor project(const at::Tensor& p) const;
  SquaredNorms squared_norms(bool channels) const;
  // Either way, whatever by_gram() says: to measure where they cost the same (bench/optimizer_bench.cpp). On a CPU.
  SquaredNorms norms_by_gram(bool channels) const;
  SquaredNorms norms_by_tiles(bool channels) const;

 private:
  bool has_lookup() const { return gradient_.rows.defined(); }
  at::Tensor dy() const { return gradient_.dy.narrow(1, row_begin_, rows_.rows()); }
  at::Tensor dense() const { return gradient_.dense.narrow(0, row_begin_, rows_.rows()); }
  // Of the factors without look-ups: by wide copies of them, or of bf16 ones on a CPU at rank 1.
  at::Tensor project_wide(const at::Tensor& p) const;
  at::Tensor project_to_vector(const at::Tensor& p) const;
  SquaredNorms norms_on_gpu(bool channels) const;

  const ParameterGradient& gradient_;
  int64_t row_begin_;
  int64_t tile_elements_;
  PartRows rows_;
};

}  // namespace lathe::optim
