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
  if (!gradient.ids.empty()) {
    const auto [rows, inverse, counts] = at::_unique2(at::cat(gradient.ids, 0), /*sorted=*/true, /*return_inverse=*/true);
    factors.rows = rows;
    factors.sums = at::zeros({rows.size(0), in}, options.dtype(at::kFloat));
    factors.sums.index_add_(0, inverse, at::cat(gradient.dx, 0).to(at::kFloat));
  }
  return factors;
}

PartGradient::PartGradient(const Factors& factors, const weights::Part& part)
    : a_(part.rows),
      b_(part.data.size(1)),
      x_(factors.x),
      dy_(factors.dy.narrow(1, part.row_begin, part.rows)),
      x_wide_(x_.to(at::kFloat)),
      dy_wide_(dy_.to(at::kFloat)),
      lookup_(factors.rows),
      sums_(factors.sums) {
  // Only embedding tables have look-ups, and they are never fused.
  LATHE_CHECK(!lookup_.defined() || part.row_begin == 0);
}

at::Tensor PartGradient::cross() const { return at::mm(dy_wide_.index_select(1, lookup_).t(), x_wide_); }

at::Tensor PartGradient::project(const at::Tensor& p) const {
  if (tall()) {
    at::Tensor r = at::mm(dy_wide_.t(), at::mm(x_wide_, p.t()));
    if (has_lookup()) r.index_add_(0, lookup_, at::mm(sums_, p.t()));
    return r;
  }
  at::Tensor r = at::mm(at::mm(p, dy_wide_.t()), x_wide_);
  if (has_lookup()) r += at::mm(p.index_select(1, lookup_), sums_);
  return r;
}

double PartGradient::squared_norm() const {
  double sum = (at::mm(x_wide_, x_wide_.t()) * at::mm(dy_wide_, dy_wide_.t())).sum(at::kDouble).item<double>();
  if (has_lookup()) sum += (sums_ * (sums_ + 2 * cross())).sum(at::kDouble).item<double>();
  // Both sums are of squares in exact arithmetic; rounding must not make them negative.
  return sum < 0 ? 0 : sum;
}

at::Tensor PartGradient::channel_squared_norms() const {
  const at::Tensor& own = tall() ? dy_wide_ : x_wide_;
  const at::Tensor& other = tall() ? x_wide_ : dy_wide_;
  at::Tensor norms = (at::mm(at::mm(other, other.t()), own) * own).sum(0);
  if (has_lookup()) {
    const at::Tensor gain = sums_ * (sums_ + 2 * cross());
    if (tall()) {
      norms.index_add_(0, lookup_, gain.sum(1));
    } else {
      norms += gain.sum(0);
    }
  }
  return norms.clamp_min_(0);
}

void PartGradient::dense_rows(int64_t begin, int64_t count, at::Tensor& out) const {
  if (x_.size(0) == 0) {
    out.zero_();
  } else {
    at::Tensor left = dy_.narrow(1, begin, count).t(), right = x_;
    if (out.scalar_type() != dtype()) left = left.to(out.scalar_type()), right = right.to(out.scalar_type());
    at::mm_out(out, left, right);
  }
  if (!has_lookup()) return;
  const int64_t* rows = lookup_.const_data_ptr<int64_t>();
  const int64_t* end = rows + lookup_.size(0);
  for (const int64_t* row = std::lower_bound(rows, end, begin); row != end && *row < begin + count; ++row) {
    out.select(0, *row - begin) += sums_.select(0, row - rows).to(out.scalar_type());
  }
}

}  // namespace lathe::optim
