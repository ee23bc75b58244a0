// An axis of a chart: maps numbers to positions and chooses the marks.
//
// Threads: values.
#pragma once

#include <string>
#include <vector>

namespace lathe::plot {

class Axis {
 public:
  // Numbers low .. high lie at positions from .. to. A logarithmic axis needs low > 0; low == high is widened.
  Axis(double low, double high, double from, double to, bool logarithmic = false);

  // Numbers beyond the ends lie at the ends.
  double at(double number) const;

  // Round numbers within the axis, about `wanted` of them and at least two: 1, 2 or 5 times a power of ten apart, and
  // of a logarithmic axis such multiples themselves.
  std::vector<double> marks(int wanted) const;

  bool logarithmic() const { return logarithmic_; }

 private:
  double low_, high_, from_, to_;
  bool logarithmic_;
};

// The shortest text that tells marks apart: 0.05, 2, 1200, 2e-05.
std::string mark_text(double mark);

}  // namespace lathe::plot
