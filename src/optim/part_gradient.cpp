#include "optim/part_gradient.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <numeric>

#include "gpu/device.h"
#include "kernels/row_products.h"
#include "kernels/squares.h"
#include "optim/gpu_writer.h"

namespace lathe::optim {
namespace {

// What a product costs in the T x T matrices, which are fp32, in products of bf16 tiles: a norm is a small difference
// of large sums where tokens cancel. `optimizer_bench norms` measures it, widening and sums and all: 2.0 to 2.5 from 32
// to 256 tokens on one core with AVX512-BF16. A constant, for the way decides last bits. Where bf16 is cheaper still,
// as with AMX, some lengths take the slower of two ways.
constexpr int64_t kFp32Cost = 2;

// Column sums are kept once for each of so many groups of tiles, whatever the number of threads.
constexpr int64_t kGroups = 64;

// dY is widened so many elements at a time.
constexpr int64_t kWideElements = int64_t{1} << 20, kGpuWideElements = int64_t{1} << 26;

// The product of two bf16 matrices in fp32: of the factors' numbers exactly, but for the order of sums. CPUs are given
// wide copies; the tensor cores of a GPU multiply into fp32 by themselves.
at::Tensor wide_product(const at::Tensor& a, const at::Tensor& b) {
  if (a.size(0) == 0 || b.size(1) == 0) return at::zeros({a.size(0), b.size(1)}, a.options().dtype(at::kFloat));
  if (a.is_cuda() && a.scalar_type() == at::kBFloat16) return at::mm(a, b, at::kFloat);
  return at::mm(a.to(at::kFloat), b.to(at::kFloat));
}

at::Tensor joined(const std::vector<at::Tensor>& pieces) {
  return pieces.size() == 1 ? pieces[0] : at::cat(pieces, 0);
}

// A flat tensor's first elements as a matrix.
at::Tensor as_rows(const at::Tensor& memory, int64_t rows, int64_t columns) {
  return memory.narrow(0, 0, rows * columns).view({rows, columns});
}

// Elements one thread should have before a second is worth waking.
constexpr int64_t kGrain = 64 * 1024;

// m [r, c] bf16, rows without gaps; x fp32. m x [r], and xᵀ m [c], without a wide copy of m.
at::Tensor times_vector(const at::Tensor& m, const at::Tensor& x) {
  if constexpr (gpu::kBuilt) {
    if (m.is_cuda()) return gpu_times_vector(m, x);
  }
  at::Tensor y = at::empty({m.size(0)}, x.options());
  const auto* data = reinterpret_cast<const uint16_t*>(m.const_data_ptr<at::BFloat16>());
  const auto* in = x.const_data_ptr<float>();
  auto* out = y.mutable_data_ptr<float>();
  at::parallel_for(0, m.size(0), 1 + kGrain / m.size(1), [&](int64_t begin, int64_t end) {
    kernels::row_dots(data + begin * m.stride(0), end - begin, m.size(1), m.stride(0), in, out + begin);
  });
  return y;
}
at::Tensor vector_times(const at::Tensor& x, const at::Tensor& m) {
  if constexpr (gpu::kBuilt) {
    if (m.is_cuda()) return gpu_vector_times(x, m);
  }
  at::Tensor y = at::empty({m.size(1)}, x.options());
  const auto* data = reinterpret_cast<const uint16_t*>(m.const_data_ptr<at::BFloat16>());
  const auto* in = x.const_data_ptr<float>();
  auto* out = y.mutable_data_ptr<float>();
  at::parallel_for(0, m.size(1), 1 + kGrain / (1 + m.size(0)), [&](int64_t begin, int64_t end) {
    kernels::weighted_row_sum(data + begin, m.size(0), end - begin, m.stride(0), in, out + begin);
  });
  return y;
}
bool can_multiply(const at::Tensor& m) {
  if constexpr (gpu::kBuilt) {
    if (m.is_cuda()) return can_multiply_on_gpu(m);
  }
  return m.is_cpu() && m.scalar_type() == at::kBFloat16 && m.stride(1) == 1;
}

// work(first row, rows) for each tile of groups [begin, end) out of `groups`, in order.
template <class Work>
void for_tiles(int64_t begin, int64_t end, int64_t groups, int64_t rows, int64_t tile, Work&& work) {
  const int64_t tiles = (rows + tile - 1) / tile;
  for (int64_t i = begin * tiles / groups; i < end * tiles / groups; ++i) {
    work(i * tile, std::min(tile, rows - i * tile));
  }
}

// The squares of rows g [count, b], per row, and added into column sums if those are wanted.
void add_squares(const at::Tensor& g, double* rows, float* columns) {
  const int64_t count = g.size(0), b = g.size(1);
  if (g.scalar_type() == at::kFloat) {
    kernels::row_squares(g.const_data_ptr<float>(), count, b, rows);
    if (columns) kernels::add_column_squares(g.const_data_ptr<float>(), count, b, columns);
    return;
  }
  const auto* bf16 = reinterpret_cast<const uint16_t*>(g.const_data_ptr<at::BFloat16>());
  kernels::row_squares(bf16, count, b, rows);
  if (columns) kernels::add_column_squares(bf16, count, b, columns);
}

}  // namespace

ParameterGradient gather(const weights::MatrixGradient& gradient, const weights::Parameter& parameter) {
  if (gradient.dense.defined()) return {.dense = gradient.dense};
  const int64_t out = parameter.data.size(0), in = parameter.data.size(1);
  const at::TensorOptions options = parameter.data.options();
  ParameterGradient gathered{.x = at::empty({0, in}, options), .dy = at::empty({0, out}, options)};
  if (!gradient.x.empty()) gathered.x = joined(gradient.x), gathered.dy = joined(gradient.dy);
  if (!gradient.ids.empty()) {
    const auto [rows, inverse, counts] = at::_unique2(joined(gradient.ids), /*sorted=*/true, /*return_inverse=*/true);
    gathered.rows = rows;
    gathered.rows_here = rows.cpu();
    gathered.sums = at::zeros({rows.size(0), in}, options.dtype(at::kFloat));
    const at::Tensor dx = joined(gradient.dx).to(at::kFloat);
    if (dx.is_cuda()) {
      gathered.sums.index_put_({inverse}, dx, /*accumulate=*/true);  // in a fixed order, which index_add_ is not there
    } else {
      gathered.sums.index_add_(0, inverse, dx);
    }
  }
  return gathered;
}

int64_t tile_rows(int64_t rows, int64_t columns, int64_t elements, int64_t multiple) {
  const int64_t most = std::clamp<int64_t>(elements / columns, 1, rows);
  const int64_t rounds = (rows + multiple * most - 1) / (multiple * most);
  return (rows + multiple * rounds - 1) / (multiple * rounds);
}

PartRows::PartRows(const ParameterGradient& gradient, const weights::Part& part)
    : a_(part.rows),
      b_(part.data.size(1)),
      lookup_(gradient.rows),
      lookup_here_(gradient.rows_here),
      sums_(gradient.sums) {
  if (gradient.dense.defined()) {
    dense_ = gradient.dense.narrow(0, part.row_begin, a_);
    return;
  }
  x_ = gradient.x;
  dy_ = gradient.dy.narrow(1, part.row_begin, a_);
  // Only embedding tables have lookups, and they are never fused.
  LATHE_CHECK(!lookup_.defined() || part.row_begin == 0);
}

at::ScalarType PartRows::dtype() const {
  if (dense_.defined()) return dense_.scalar_type();
  return dy_.is_cuda() ? at::kFloat : dy_.scalar_type();
}

PartRows PartRows::widened() const {
  PartRows wide = *this;
  if (dtype() == at::kFloat) return wide;
  for (at::Tensor* t : {&wide.x_, &wide.dy_, &wide.dense_}) {
    if (t->defined()) *t = t->to(at::kFloat);
  }
  return wide;
}

at::Tensor PartRows::read(int64_t begin, int64_t count, const at::Tensor& scratch) const {
  if (dense_.defined()) return dense_.narrow(0, begin, count);
  at::Tensor out = as_rows(scratch, count, b_);
  if (x_.size(0) == 0) {
    out.zero_();
  } else if (out.scalar_type() == x_.scalar_type()) {
    at::mm_out(out, dy_.narrow(1, begin, count).t(), x_);
  } else {
    at::mm_out(out, dy_.narrow(1, begin, count).t(), x_, out.scalar_type());
  }
  if (!lookup_.defined()) return out;
  const int64_t* rows = lookup_here_.const_data_ptr<int64_t>();
  const int64_t* end = rows + lookup_here_.size(0);
  const int64_t first = std::lower_bound(rows, end, begin) - rows;
  const int64_t last = std::lower_bound(rows + first, end, begin + count) - rows;
  if (first == last) return out;
  out.index_add_(0, lookup_.narrow(0, first, last - first) - begin,
                 sums_.narrow(0, first, last - first).to(out.scalar_type()));
  return out;
}

PartRows PartRows::formed_in(const at::Tensor& buffer) const {
  if (formed()) return *this;
  PartRows formed = *this;
  formed.dense_ = as_rows(buffer, a_, b_);
  if (buffer.is_cuda()) {
    read(0, a_, buffer);
    return formed;
  }
  // One product for each thread, which packs X once. A row's bits do not depend on the rows it is formed with.
  const int64_t rows = (a_ + at::get_num_threads() - 1) / at::get_num_threads();
  at::parallel_for(0, a_, rows, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad;
    read(begin, end - begin, formed.dense_.narrow(0, begin, end - begin).view({-1}));
  });
  return formed;
}

PartGradient::PartGradient(const ParameterGradient& gradient, const weights::Part& part, int64_t tile_elements)
    : gradient_(gradient), row_begin_(part.row_begin), tile_elements_(tile_elements), rows_(gradient, part) {}

bool PartGradient::by_gram() const {
  if (rows_.formed()) return false;
  const int64_t a = rows_.rows(), b = rows_.columns();
  // A GPU multiplies bf16 into fp32 at one price.
  const bool same_price = rows_.dtype() == at::kFloat;
  return gradient_.x.size(0) * (a + b) * (same_price ? 1 : kFp32Cost) <= a * b;
}

at::Tensor PartGradient::project(const at::Tensor& p) const {
  if (gradient_.dense.defined()) return tall() ? at::mm(dense(), p.t()) : at::mm(p, dense());
  const bool narrow = p.size(0) == 1 && can_multiply(gradient_.x) && can_multiply(gradient_.dy);
  at::Tensor r = narrow ? project_to_vector(p) : project_wide(p);
  if (!has_lookup()) return r;
  if (!tall()) return r += at::mm(p.index_select(1, gradient_.rows), gradient_.sums);
  return r.index_add_(0, gradient_.rows, at::mm(gradient_.sums, p.t()));
}

at::Tensor PartGradient::project_wide(const at::Tensor& p) const {
  const at::Tensor x = gradient_.x.to(at::kFloat), dy = this->dy();
  if (!tall()) return at::mm(at::mm(p, dy.to(at::kFloat).t()), x);
  const at::Tensor y = at::mm(x, p.t());
  at::Tensor r = at::empty({rows_.rows(), p.size(0)}, p.options());
  const int64_t step =
      tile_rows(r.size(0), std::max<int64_t>(1, dy.size(0)), dy.is_cuda() ? kGpuWideElements : kWideElements);
  for (int64_t begin = 0; begin < r.size(0); begin += step) {
    const int64_t count = std::min(step, r.size(0) - begin);
    at::Tensor block = r.narrow(0, begin, count);
    at::mm_out(block, dy.narrow(1, begin, count).to(at::kFloat).t(), y);
  }
  return r;
}

at::Tensor PartGradient::project_to_vector(const at::Tensor& p) const {
  const at::Tensor vector = p.squeeze(0);
  if (!tall()) return vector_times(times_vector(dy(), vector), gradient_.x).unsqueeze(0);
  return vector_times(times_vector(gradient_.x, vector), dy()).unsqueeze(1);
}

SquaredNorms PartGradient::squared_norms(bool channels) const {
  if (by_gram()) return norms_by_gram(channels);
  return rows_.device().is_cpu() ? norms_by_tiles(channels) : norms_on_gpu(channels);
}

SquaredNorms PartGradient::norms_by_gram(bool channels) const {
  const at::Tensor &factor_x = gradient_.x, factor_dy = this->dy();
  const at::Tensor x_gram = wide_product(factor_x, factor_x.t()), dy_gram = wide_product(factor_dy, factor_dy.t());
  SquaredNorms norms{.sum = (x_gram * dy_gram).sum(at::kDouble)};
  if (!channels && !has_lookup()) {
    norms.sum.clamp_min_(0);
    return norms;
  }
  const at::Tensor x = factor_x.to(at::kFloat), dy = factor_dy.to(at::kFloat);
  if (channels) norms.channels = tall() ? (at::mm(x_gram, dy) * dy).sum(0) : (at::mm(dy_gram, x) * x).sum(0);
  if (has_lookup()) {
    // (F + U)² - F² = U (U + 2 F) with F = (dYᵀX)[u].
    const at::Tensor f = at::mm(dy.index_select(1, gradient_.rows).t(), x);
    const at::Tensor gain = gradient_.sums * (gradient_.sums + 2 * f);
    norms.sum += gain.sum(at::kDouble);
    if (channels && tall()) norms.channels.index_add_(0, gradient_.rows, gain.sum(1));
    if (channels && !tall()) norms.channels += gain.sum(0);
  }
  // Sums of squares in exact arithmetic; rounding must not make them negative.
  norms.sum.clamp_min_(0);
  if (channels) norms.channels.clamp_min_(0);
  return norms;
}

SquaredNorms PartGradient::norms_by_tiles(bool channels) const {
  const int64_t a = rows_.rows(), b = rows_.columns();
  const bool columns = channels && !tall();
  // Sums over rows depend on the tiles: they must be the same whether G is formed or not.
  const int64_t tile = tile_rows(a, b, tile_elements_, rows_.formed() && !columns ? kFormedTiles : 1);
  const int64_t tiles = (a + tile - 1) / tile, groups = columns ? std::min(tiles, kGroups) : tiles;
  std::vector<double> by_row(a);
  const at::Tensor by_group = at::zeros({columns ? groups : 0, b}, at::kFloat);
  at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad;
    const at::Tensor scratch = at::empty({rows_.formed() ? 0 : tile * b}, at::TensorOptions().dtype(rows_.dtype()));
    for (int64_t group = begin; group < end; ++group) {
      float* sums = columns ? by_group.data_ptr<float>() + group * b : nullptr;
      for_tiles(group, group + 1, groups, a, tile, [&](int64_t first, int64_t count) {
        add_squares(rows_.read(first, count, scratch), by_row.data() + first, sums);
      });
    }
  });
  SquaredNorms norms{.sum = at::scalar_tensor(std::accumulate(by_row.begin(), by_row.end(), 0.0), at::kDouble)};
  if (columns) norms.channels = by_group.sum(0);
  if (channels && !columns) norms.channels = at::tensor(by_row, at::kDouble).to(at::kFloat);
  return norms;
}

SquaredNorms PartGradient::norms_on_gpu(bool channels) const {
  const int64_t a = rows_.rows(), b = rows_.columns(), tile = rows_.formed() ? a : tile_rows(a, b, kGpuTileElements);
  const auto options = at::TensorOptions().device(rows_.device()).dtype(at::kFloat);
  const at::Tensor scratch = at::empty({rows_.formed() ? 0 : tile * b}, options);
  const bool columns = channels && !tall();
  const std::vector<int64_t> along{columns ? 0 : 1};
  at::Tensor by_line = at::zeros({columns ? b : a}, options);
  for (int64_t begin = 0; begin < a; begin += tile) {
    const at::Tensor g = rows_.read(begin, std::min(tile, a - begin), scratch);
    const at::Tensor squares = at::linalg_vector_norm(g, 2, along, /*keepdim=*/false, at::kFloat).square();
    columns ? by_line += squares : by_line.narrow(0, begin, g.size(0)).copy_(squares);
  }
  return {.sum = by_line.sum(at::kDouble), .channels = channels ? by_line : at::Tensor()};
}

}  // namespace lathe::optim
