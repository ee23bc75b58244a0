#include "plot/axis.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace lathe::plot {
namespace {

std::vector<double> steps_between(double low, double high, int wanted) {
  const double rough = (high - low) / wanted, decade = std::pow(10, std::floor(std::log10(rough)));
  const double step = decade * (rough > 5 * decade ? 10 : rough > 2 * decade ? 5 : rough > decade ? 2 : 1);
  std::vector<double> marks;
  // Counted, not added up: 0.1 + 0.1 + 0.1 is not 0.3.
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i)
    marks.push_back(i * step + 0.0);  // not -0
  return marks;
}

std::vector<double> multiples_between(double low, double high, const std::vector<int>& multiples) {
  std::vector<double> marks;
  for (double decade = std::floor(std::log10(low)); decade <= std::ceil(std::log10(high)); ++decade) {
    for (const int multiple : multiples) {
      const double mark = multiple * std::pow(10, decade);
      if (mark >= low * (1 - 1e-9) && mark <= high * (1 + 1e-9)) marks.push_back(mark);
    }
  }
  return marks;
}

}  // namespace

Axis::Axis(double low, double high, double from, double to, bool logarithmic)
    : low_(low), high_(high), from_(from), to_(to), logarithmic_(logarithmic) {
  if (low_ != high_) return;
  const double room = low_ == 0 ? 1 : std::abs(low_) / 10;
  low_ -= room, high_ += room;
}

double Axis::at(double number) const {
  const double share = logarithmic_ ? std::log(std::max(number, low_) / low_) / std::log(high_ / low_)
                                    : (number - low_) / (high_ - low_);
  return from_ + (to_ - from_) * std::clamp(share, 0.0, 1.0);
}

std::vector<double> Axis::marks(int wanted) const {
  if (!logarithmic_) return steps_between(low_, high_, wanted);
  for (const std::vector<int>& multiples : std::vector<std::vector<int>>{{1}, {1, 3}, {1, 2, 5}}) {
    std::vector<double> marks = multiples_between(low_, high_, multiples);
    if (static_cast<int>(marks.size()) >= std::min(wanted, 3)) return marks;
  }
  return steps_between(low_, high_, wanted);
}

std::string mark_text(double mark) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", mark);
  return text;
}

}  // namespace lathe::plot
