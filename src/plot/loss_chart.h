// The picture of a training run, drawn with cairo: training loss of every step and its trend, evaluations with the best
// one marked, and the learning rate below. The same numbers give the same picture (of the SVG: but for ids that cairo
// counts up).
//
// Threads: pure functions.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace lathe::plot {

struct Point {
  double x = 0, y = 0;
};

struct LossChart {
  std::string title, subtitle;
  double steps = 0;             // the horizontal axis goes from 0 to here
  std::vector<Point> training;  // ascending in x, as the others
  std::vector<Point> evaluation;
  std::vector<Point> rate;  // learning rate
};

// The picture as a file's bytes. kInternal if cairo cannot draw it, for instance for lack of memory.
Result<std::string> draw_svg(const LossChart& chart);
Result<std::string> draw_png(const LossChart& chart);  // twice as many pixels as the SVG has units

}  // namespace lathe::plot
