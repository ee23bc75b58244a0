#include "kernels/row_products.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/bf16.h"

namespace lathe::kernels {
namespace {

struct Case {
  int64_t rows, columns, stride;
};

class RowProducts : public ::testing::TestWithParam<Case> {
 protected:
  RowProducts() {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < rows * stride; ++i) m.push_back(narrow(normal(random_)));
    for (int64_t i = 0; i < std::max(rows, columns); ++i) x.push_back(normal(random_));
  }
  double at(int64_t i, int64_t j) const { return widen(m[i * stride + j]); }

  const int64_t rows = GetParam().rows, columns = GetParam().columns, stride = GetParam().stride;
  std::vector<uint16_t> m;
  std::vector<float> x;

 private:
  std::mt19937 random_{1};
};

TEST_P(RowProducts, DotsAgreeWithDoubles) {
  std::vector<float> y(rows, NAN);
  row_dots(m.data(), rows, columns, stride, x.data(), y.data());
  for (int64_t i = 0; i < rows; ++i) {
    double sum = 0, size = 0;
    for (int64_t j = 0; j < columns; ++j) sum += at(i, j) * x[j], size += std::abs(at(i, j) * x[j]);
    EXPECT_NEAR(y[i], sum, 1e-6 * size) << i;
  }
}

TEST_P(RowProducts, SumsAgreeWithDoubles) {
  std::vector<float> y(columns, NAN);
  weighted_row_sum(m.data(), rows, columns, stride, x.data(), y.data());
  for (int64_t j = 0; j < columns; ++j) {
    double sum = 0, size = 0;
    for (int64_t i = 0; i < rows; ++i) sum += x[i] * at(i, j), size += std::abs(x[i] * at(i, j));
    EXPECT_NEAR(y[j], sum, 1e-6 * size) << j;
  }
}

// However the work is split, each number is computed in the same order.
TEST_P(RowProducts, PiecesGiveTheSameBits) {
  std::vector<float> whole(columns), pieces(columns);
  weighted_row_sum(m.data(), rows, columns, stride, x.data(), whole.data());
  const int64_t cut = columns / 3;
  weighted_row_sum(m.data(), rows, cut, stride, x.data(), pieces.data());
  weighted_row_sum(m.data() + cut, rows, columns - cut, stride, x.data(), pieces.data() + cut);
  EXPECT_EQ(whole, pieces);
}

INSTANTIATE_TEST_SUITE_P(Shapes, RowProducts,
                         ::testing::Values(Case{0, 5, 5}, Case{1, 1, 1}, Case{3, 31, 40}, Case{8, 64, 64},
                                           Case{21, 577, 1000}, Case{170, 96, 96}));

}  // namespace
}  // namespace lathe::kernels
