#include "optim/factors.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace lathe::optim {

Factors gather(const weights::MatrixGradient& gradient, const weights::Parameter& parameter) {
  const int64_t out = parameter.data.size(0), in = parameter.data.size(1);
  const at::TensorOptions options = parameter.data.options();
  Factors factors;
  if (gradient.x.empty()) {
    factors.x = at::empty({0, in}, options);
    factors.dy = at::empty({0, out}, options);
  } else {
    factors.x = gradient.x.size() == 1 ? gradient.x[0] : at::cat(gradient.x, 0);
    factors.dy = gradient.dy.size() == 1 ? gradient.dy[0] : at::cat(gradient.dy, 0);
  }
  factors.x_wide = factors.x.to(at::kFloat);
  factors.dy_wide = factors.dy.to(at::kFloat);
  factors.x_gram = at::mm(factors.x_wide, factors.x_wide.t());
  if (!gradient.ids.empty()) {
    const auto [rows, inverse, counts] =
        at::_unique2(at::cat(gradient.ids, 0), /*sorted=*/true, /*return_inverse=*/true);
    factors.rows = rows;
    factors.sums = at::zeros({rows.size(0), in}, options.dtype(at::kFloat));
    factors.sums.index_add_(0, inverse, at::cat(gradient.dx, 0).to(at::kFloat));
  }
  return factors;
}

PartRows::PartRows(const Factors& factors, const weights::Part& part)
    : a_(part.rows),
      b_(part.data.size(1)),
      x_(factors.x),
      dy_(factors.dy.narrow(1, part.row_begin, part.rows)),
      lookup_(factors.rows),
      sums_(factors.sums) {
  // Only embedding tables have look-ups, and they are never fused.
  LATHE_CHECK(!lookup_.defined() || part.row_begin == 0);
}

PartRows PartRows::widened() const {
  PartRows wide = *this;
  wide.x_ = x_.to(at::kFloat);
  wide.dy_ = dy_.to(at::kFloat);
  return wide;
}

void PartRows::write(int64_t begin, int64_t count, at::Tensor& out) const {
  if (x_.size(0) == 0) {
    out.zero_();
  } else {
    at::mm_out(out, dy_.narrow(1, begin, count).t(), x_);
  }
  if (!lookup_.defined()) return;
  const int64_t* rows = lookup_.const_data_ptr<int64_t>();
  const int64_t* end = rows + lookup_.size(0);
  for (const int64_t* row = std::lower_bound(rows, end, begin); row != end && *row < begin + count; ++row) {
    out.select(0, *row - begin) += sums_.select(0, row - rows).to(out.scalar_type());
  }
}

PartGradient::PartGradient(const Factors& factors, const weights::Part& part)
    : factors_(factors), dense_(factors, part), dy_(factors.dy_wide.narrow(1, part.row_begin, part.rows)) {}

at::Tensor PartGradient::project(const at::Tensor& p) const {
  const at::Tensor& x = factors_.x_wide;
  if (tall()) {
    at::Tensor r = at::mm(dy_.t(), at::mm(x, p.t()));
    if (has_lookup()) r.index_add_(0, factors_.rows, at::mm(factors_.sums, p.t()));
    return r;
  }
  at::Tensor r = at::mm(at::mm(p, dy_.t()), x);
  if (has_lookup()) r += at::mm(p.index_select(1, factors_.rows), factors_.sums);
  return r;
}

at::Tensor PartGradient::lookup_gain() const {
  // (F + U)² - F² = U (U + 2 F) with F = (dYᵀX)[u].
  const at::Tensor f = at::mm(dy_.index_select(1, factors_.rows).t(), factors_.x_wide);
  return factors_.sums * (factors_.sums + 2 * f);
}

double PartGradient::squared_norm() const {
  double sum = (factors_.x_gram * at::mm(dy_, dy_.t())).sum(at::kDouble).item<double>();
  if (has_lookup()) sum += lookup_gain().sum(at::kDouble).item<double>();
  // A sum of squares in exact arithmetic; rounding must not make it negative.
  return sum < 0 ? 0 : sum;
}

at::Tensor PartGradient::channel_squared_norms() const {
  at::Tensor norms = tall() ? (at::mm(factors_.x_gram, dy_) * dy_).sum(0)
                            : (at::mm(at::mm(dy_, dy_.t()), factors_.x_wide) * factors_.x_wide).sum(0);
  if (has_lookup()) {
    if (tall()) {
      norms.index_add_(0, factors_.rows, lookup_gain().sum(1));
    } else {
      norms += lookup_gain().sum(0);
    }
  }
  return norms.clamp_min_(0);
}

}  // namespace lathe::optim
