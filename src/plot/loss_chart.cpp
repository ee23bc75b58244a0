#include "plot/loss_chart.h"

#include <cairo-svg.h>
#include <cairo.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>

#include "plot/axis.h"

namespace lathe::plot {
namespace {

constexpr double kWidth = 960, kHeight = 560;
constexpr double kLeft = 76, kRight = 880;           // of both panels; right of them is room for a number
constexpr double kTop = 86, kBottom = 400;           // of the losses
constexpr double kRateTop = 432, kRateBottom = 500;  // of the learning rate
constexpr double kPngScale = 2;

struct Colour {
  double red, green, blue, alpha = 1;
};
constexpr Colour kInk{0.13, 0.15, 0.19}, kFaint{0.42, 0.45, 0.50}, kGrid{0.90, 0.91, 0.93};
constexpr Colour kBlue{0.11, 0.40, 0.75}, kPaleBlue{0.11, 0.40, 0.75, 0.28}, kOrange{0.88, 0.40, 0.05},
    kGreen{0.18, 0.55, 0.34};

// What is drawn on: everything in units of the SVG.
class Canvas {
 public:
  explicit Canvas(cairo_surface_t* surface) : cairo_(cairo_create(surface), cairo_destroy) {
    cairo_set_line_join(get(), CAIRO_LINE_JOIN_ROUND);
    cairo_set_line_cap(get(), CAIRO_LINE_CAP_ROUND);
  }
  cairo_t* get() const { return cairo_.get(); }

  void colour(const Colour& c) const { cairo_set_source_rgba(get(), c.red, c.green, c.blue, c.alpha); }

  void line(double x0, double y0, double x1, double y1, const Colour& c, double width) const {
    path({{x0, y0}, {x1, y1}}, c, width);
  }
  void path(const std::vector<Point>& points, const Colour& c, double width) const {
    if (points.empty()) return;
    colour(c);
    cairo_set_line_width(get(), width);
    cairo_move_to(get(), points[0].x, points[0].y);
    for (const Point& p : points) cairo_line_to(get(), p.x, p.y);
    cairo_stroke(get());
  }
  void dot(Point p, double radius, const Colour& c) const {
    colour(c);
    cairo_arc(get(), p.x, p.y, radius, 0, 2 * M_PI);
    cairo_fill(get());
  }
  void ring(Point p, double radius, const Colour& c) const {
    colour(c);
    cairo_set_line_width(get(), 1.5);
    cairo_arc(get(), p.x, p.y, radius, 0, 2 * M_PI);
    cairo_stroke(get());
  }

  // `align`: 0 begins at x, 1 ends there.
  void text(double x, double y, const std::string& s, double size, const Colour& c, double align = 0,
            bool bold = false) const {
    cairo_select_font_face(get(), "sans-serif", CAIRO_FONT_SLANT_NORMAL,
                           bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(get(), size);
    cairo_text_extents_t extents;
    cairo_text_extents(get(), s.c_str(), &extents);
    colour(c);
    cairo_move_to(get(), x - align * extents.x_advance, y);
    cairo_show_text(get(), s.c_str());
  }

 private:
  std::unique_ptr<cairo_t, decltype(&cairo_destroy)> cairo_;
};

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, value >= 100 ? "%.1f" : value >= 0.1 ? "%.3f" : "%.3g", value);
  return text;
}

// Mean of the last steps, the later the heavier; about a twentieth of the run, so that a trend shows in long and in
// short ones.
std::vector<Point> trend(const std::vector<Point>& points) {
  const double keep = 1 - 1 / (1 + static_cast<double>(points.size()) / 40);
  std::vector<Point> out;
  double sum = 0, weight = 0;
  for (const Point& p : points) {
    sum = keep * sum + p.y, weight = keep * weight + 1;
    out.push_back({p.x, sum / weight});
  }
  return out;
}

// As many points as can be seen: of each stretch the lowest and the highest.
std::vector<Point> thinned(const std::vector<Point>& points) {
  constexpr size_t kColumns = 800;
  if (points.size() <= 2 * kColumns) return points;
  std::vector<Point> out;
  for (size_t column = 0; column < kColumns; ++column) {
    const auto begin = points.begin() + static_cast<ptrdiff_t>(points.size() * column / kColumns);
    const auto end = points.begin() + static_cast<ptrdiff_t>(points.size() * (column + 1) / kColumns);
    auto [low, high] = std::minmax_element(begin, end, [](auto& a, auto& b) { return a.y < b.y; });
    if (high < low) std::swap(low, high);
    out.push_back(*low);
    if (high != low) out.push_back(*high);
  }
  return out;
}

std::vector<Point> placed(const std::vector<Point>& points, const Axis& x, const Axis& y) {
  std::vector<Point> out;
  out.reserve(points.size());
  for (const Point& p : points) out.push_back({x.at(p.x), y.at(p.y)});
  return out;
}

// Nearly all of the losses: one wild step must not press all others flat.
Axis loss_axis(const LossChart& chart) {
  std::vector<double> shown;
  for (const auto* points : {&chart.training, &chart.evaluation}) {
    for (const Point& p : *points) shown.push_back(p.y);
  }
  if (shown.empty()) shown.push_back(1);
  std::sort(shown.begin(), shown.end());
  const double low = shown.front();
  double high = shown[(shown.size() - 1) * 995 / 1000];
  for (const Point& p : chart.evaluation) high = std::max(high, p.y);
  if (low > 0 && high > 30 * low) return {low / 1.15, high * 1.15, kBottom, kTop, /*logarithmic=*/true};
  const double room = 0.06 * (high - low);
  return {std::max(low - room, low > 0 ? 0 : low - room), high + room, kBottom, kTop};
}

void draw_axes(const Canvas& canvas, const Axis& x, const Axis& y) {
  for (const double mark : y.marks(6)) {
    canvas.line(kLeft, y.at(mark), kRight, y.at(mark), kGrid, 1);
    canvas.text(kLeft - 8, y.at(mark) + 4, mark_text(mark), 12, kFaint, 1);
  }
  for (const double mark : x.marks(8)) {
    if (mark != std::floor(mark)) continue;
    canvas.line(x.at(mark), kTop, x.at(mark), kBottom, kGrid, 1);
    canvas.line(x.at(mark), kRateTop, x.at(mark), kRateBottom, kGrid, 1);
    canvas.text(x.at(mark), kRateBottom + 18, mark_text(mark), 12, kFaint, 0.5);
  }
  canvas.line(kLeft, kBottom, kRight, kBottom, kFaint, 1);
  canvas.line(kLeft, kRateBottom, kRight, kRateBottom, kFaint, 1);
  canvas.text(kLeft, kTop - 10, y.logarithmic() ? "loss (logarithmic)" : "loss", 12, kFaint);
  canvas.text(kLeft, kRateTop - 8, "learning rate", 12, kFaint);
  canvas.text((kLeft + kRight) / 2, kRateBottom + 40, "step", 12, kFaint, 0.5);
}

void draw_losses(const Canvas& canvas, const LossChart& chart, const Axis& x, const Axis& y) {
  const std::vector<Point> smooth = trend(chart.training);
  canvas.path(placed(thinned(chart.training), x, y), kPaleBlue, 1);
  canvas.path(placed(thinned(smooth), x, y), kBlue, 2.5);
  if (!smooth.empty()) {
    const Point last{x.at(smooth.back().x), y.at(smooth.back().y)};
    canvas.dot(last, 3.5, kBlue);
    canvas.text(last.x + 8, last.y + 4, number(smooth.back().y), 12, kBlue, 0, /*bold=*/true);
  }
  if (chart.evaluation.empty()) return;
  const std::vector<Point> points = placed(chart.evaluation, x, y);
  canvas.path(points, kOrange, 2);
  for (const Point& p : points) canvas.dot(p, points.size() > 60 ? 2 : 3.5, kOrange);
  const auto best =
      std::min_element(chart.evaluation.begin(), chart.evaluation.end(), [](auto& a, auto& b) { return a.y < b.y; });
  const Point at = points[best - chart.evaluation.begin()];
  canvas.ring(at, 7, kOrange);
  canvas.text(at.x + (at.x > kRight - 60 ? -10 : 10), at.y - 10, "best " + number(best->y), 12, kOrange,
              at.x > kRight - 60 ? 1 : 0, /*bold=*/true);
}

void draw_legend(const Canvas& canvas, const LossChart& chart) {
  double right = kRight;
  const auto entry = [&](const char* text, const Colour& colour, double width) {
    right -= width;
    canvas.line(right, kTop - 14, right + 18, kTop - 14, colour, 2.5);
    canvas.text(right + 24, kTop - 10, text, 12, kInk);
  };
  if (!chart.evaluation.empty()) entry("evaluation", kOrange, 96);
  entry("trend", kBlue, 72);
  entry("training", kPaleBlue, 88);
}

void draw(const Canvas& canvas, const LossChart& chart) {
  canvas.colour({1, 1, 1});
  cairo_paint(canvas.get());
  canvas.text(kLeft, 28, chart.title, 17, kInk, 0, /*bold=*/true);
  canvas.text(kLeft, 47, chart.subtitle, 12, kFaint);
  const Axis x(0, std::max(1.0, chart.steps), kLeft, kRight), y = loss_axis(chart);
  double peak = 0;
  for (const Point& p : chart.rate) peak = std::max(peak, p.y);
  const Axis rate(0, peak > 0 ? peak * 1.1 : 1, kRateBottom, kRateTop);
  draw_axes(canvas, x, y);
  if (peak > 0) canvas.text(kLeft - 8, rate.at(peak) + 4, mark_text(peak), 12, kFaint, 1);
  canvas.path(placed(thinned(chart.rate), x, rate), kGreen, 2);
  draw_losses(canvas, chart, x, y);
  draw_legend(canvas, chart);
}

cairo_status_t append(void* text, const unsigned char* bytes, unsigned int size) {
  static_cast<std::string*>(text)->append(reinterpret_cast<const char*>(bytes), size);
  return CAIRO_STATUS_SUCCESS;
}

using Surface = std::unique_ptr<cairo_surface_t, decltype(&cairo_surface_destroy)>;

Status check(cairo_status_t status) {
  if (status == CAIRO_STATUS_SUCCESS) return {};
  return Error{Code::kInternal, std::string("the chart could not be drawn: ") + cairo_status_to_string(status)};
}

}  // namespace

Result<std::string> draw_svg(const LossChart& chart) {
  std::string bytes;
  const Surface surface(cairo_svg_surface_create_for_stream(append, &bytes, kWidth, kHeight), cairo_surface_destroy);
  draw(Canvas(surface.get()), chart);
  cairo_surface_finish(surface.get());
  LATHE_TRY(check(cairo_surface_status(surface.get())));
  return bytes;
}

Result<std::string> draw_png(const LossChart& chart) {
  const Surface surface(cairo_image_surface_create(CAIRO_FORMAT_RGB24, static_cast<int>(kWidth * kPngScale),
                                                   static_cast<int>(kHeight * kPngScale)),
                        cairo_surface_destroy);
  cairo_surface_set_device_scale(surface.get(), kPngScale, kPngScale);
  draw(Canvas(surface.get()), chart);
  std::string bytes;
  LATHE_TRY(check(cairo_surface_write_to_png_stream(surface.get(), append, &bytes)));
  return bytes;
}

}  // namespace lathe::plot
