#include <cairo.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "plot/axis.h"
#include "plot/loss_chart.h"

namespace lathe::plot {
namespace {

std::string marks(const Axis& axis, int wanted) {
  std::string text;
  for (const double mark : axis.marks(wanted)) text += (text.empty() ? "" : " ") + mark_text(mark);
  return text;
}

TEST(Axis, MarksAreRoundNumbersInside) {
  EXPECT_EQ(marks({0, 10, 0, 1}, 5), "0 2 4 6 8 10");
  EXPECT_EQ(marks({0.13, 0.52, 0, 1}, 5), "0.2 0.3 0.4 0.5");
  EXPECT_EQ(marks({0, 1234, 0, 1}, 8), "0 200 400 600 800 1000 1200");
  EXPECT_EQ(marks({0.7, 0.7, 0, 1}, 3), "0.65 0.7 0.75");
  EXPECT_EQ(marks({0.002, 30, 0, 1, /*logarithmic=*/true}, 6), "0.01 0.1 1 10");
  EXPECT_EQ(marks({0.2, 9, 0, 1, /*logarithmic=*/true}, 6), "0.3 1 3");
}

TEST(Axis, PlacesNumbers) {
  const Axis plain(2, 4, 100, 0), logarithmic(0.01, 100, 0, 8, true);
  EXPECT_DOUBLE_EQ(plain.at(2), 100);
  EXPECT_DOUBLE_EQ(plain.at(3.5), 25);
  EXPECT_DOUBLE_EQ(plain.at(9), 0) << "beyond the end";
  EXPECT_DOUBLE_EQ(logarithmic.at(1), 4);
  EXPECT_DOUBLE_EQ(logarithmic.at(-1), 0);
}

// Of a PNG's pixels, those that `wanted` picks: how many and where on average.
struct Found {
  int64_t count = 0;
  double x = 0, y = 0;
};

class Picture {
 public:
  explicit Picture(const std::string& png) : rest_(png) {
    const auto read = [](void* self, unsigned char* out, unsigned int n) {
      auto& rest = static_cast<Picture*>(self)->rest_;
      if (rest.size() < n) return CAIRO_STATUS_READ_ERROR;
      std::memcpy(out, rest.data(), n);
      rest.remove_prefix(n);
      return CAIRO_STATUS_SUCCESS;
    };
    surface_ = cairo_image_surface_create_from_png_stream(read, this);
  }
  ~Picture() { cairo_surface_destroy(surface_); }
  Picture(const Picture&) = delete;
  Picture& operator=(const Picture&) = delete;

  int width() const { return cairo_image_surface_get_width(surface_); }
  int height() const { return cairo_image_surface_get_height(surface_); }

  Found find(double from, double to, const std::function<bool(int red, int green, int blue)>& wanted) const {
    Found found;
    for (int y = 0; y < height(); ++y) {
      const auto* row = reinterpret_cast<const uint32_t*>(cairo_image_surface_get_data(surface_) +
                                                          y * cairo_image_surface_get_stride(surface_));
      for (int x = static_cast<int>(from * width()); x < static_cast<int>(to * width()); ++x) {
        if (!wanted(row[x] >> 16 & 255, row[x] >> 8 & 255, row[x] & 255)) continue;
        ++found.count, found.x += x, found.y += y;
      }
    }
    found.x /= static_cast<double>(found.count), found.y /= static_cast<double>(found.count);
    return found;
  }

 private:
  std::string_view rest_;
  cairo_surface_t* surface_ = nullptr;
};

bool is_blue(int red, int green, int blue) {
  return blue > 170 && red < 60 && green < 130;
}
bool is_orange(int red, int green, int blue) {
  return red > 200 && blue < 60 && green < 140;
}

LossChart falling(int steps) {
  LossChart chart{.title = "a run", .subtitle = "its data", .steps = static_cast<double>(steps)};
  for (int i = 1; i <= steps; ++i) {
    const double loss = 1 + 3.0 * (steps - i) / steps;
    chart.training.push_back({static_cast<double>(i), loss + (i % 2 == 0 ? 0.2 : -0.2)});
    chart.rate.push_back({static_cast<double>(i), 1e-4});
  }
  return chart;
}

TEST(LossChart, AFallingLossFalls) {
  for (const int steps : {40, 5000}) {
    const auto png = draw_png(falling(steps));
    ASSERT_TRUE(png.ok());
    const Picture picture(*png);
    ASSERT_EQ(picture.width(), 1920);
    const Found early = picture.find(0.1, 0.25, is_blue), late = picture.find(0.75, 0.9, is_blue);
    ASSERT_GT(early.count, 300);
    ASSERT_GT(late.count, 300);
    EXPECT_LT(early.y + 200, late.y) << "rows are counted from above";
  }
}

TEST(LossChart, EvaluationsAreDrawnWhereThereAreSome) {
  LossChart chart = falling(50);
  EXPECT_EQ(Picture(draw_png(chart).value()).find(0, 1, is_orange).count, 0);
  chart.evaluation = {{0, 4}, {25, 2.4}, {50, 2.6}};
  const Picture picture(draw_png(chart).value());
  EXPECT_GT(picture.find(0.1, 0.3, is_orange).count, 300);
  EXPECT_GT(picture.find(0.6, 0.8, is_orange).count, 300);
}

TEST(LossChart, OneWildStepDoesNotFlattenTheOthers) {
  LossChart chart = falling(1000);
  chart.training[20].y = 1e6;
  const Picture picture(draw_png(chart).value());
  EXPECT_LT(picture.find(0.2, 0.3, is_blue).y + 150, picture.find(0.75, 0.9, is_blue).y);
}

TEST(LossChart, AreWhatTheyAreCalled) {
  LossChart chart = falling(20);
  chart.title = "<data & model>";
  const std::string svg = draw_svg(chart).value();
  EXPECT_EQ(svg.find("<?xml"), 0U);
  EXPECT_NE(svg.find("<svg"), std::string::npos);
  EXPECT_NE(svg.find("</svg>"), std::string::npos);
  EXPECT_EQ(draw_png(chart).value().substr(1, 3), "PNG");
  EXPECT_EQ(draw_png(chart).value(), draw_png(chart).value());
}

TEST(LossChart, NothingToShowIsNoError) {
  for (const LossChart& chart : {LossChart{}, LossChart{.steps = 1, .training = {{1, 0}}}}) {
    EXPECT_TRUE(draw_svg(chart).ok());
    EXPECT_TRUE(draw_png(chart).ok());
  }
}

}  // namespace
}  // namespace lathe::plot
