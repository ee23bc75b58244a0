// The update kernels on a GPU against those of the CPU, bit for bit. Without a GPU every test skips itself.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>

#include <cmath>

#include "gpu/device.h"
#include "kernels/cuda_row_products.h"
#include "kernels/cuda_update.h"

namespace lathe::kernels {
namespace {

const Result<c10::Device>& device() {
  static const Result<c10::Device> opened = gpu::open("cuda");
  return opened;
}

cuda::Stream stream() {
  return c10::cuda::getCurrentCUDAStream().stream();
}

uint16_t* bits(const at::Tensor& t) {
  return reinterpret_cast<uint16_t*>(t.data_ptr<at::BFloat16>());
}

class GpuUpdate : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!device().ok()) GTEST_SKIP() << device().error().message;
    at::manual_seed(7);
  }

  at::Tensor statistics() const {
    return at::zeros({cuda::kStatisticsRows, cuda::kStatisticsColumns},
                     at::TensorOptions().dtype(at::kDouble).device(*device()));
  }
};

void expect_same(const at::Tensor& statistics, const UpdateStats& expected) {
  const at::Tensor sums = statistics.sum(0).cpu();
  EXPECT_EQ(sums[0].item<double>(), static_cast<double>(expected.changed));
  EXPECT_NEAR(sums[1].item<double>(), expected.intended_squared, 1e-5 * expected.intended_squared);
  EXPECT_NEAR(sums[2].item<double>(), expected.realised_dot, 1e-5 * expected.intended_squared);
}

// Ranges that begin and end inside groups, and tensors whose memory is aligned to two bytes only.
TEST_F(GpuUpdate, Bf16AgreesWithTheCpuToTheBit) {
  for (const Rounding rounding : {Rounding::kStochastic, Rounding::kNearest}) {
    for (const int64_t first : {0, 8, 512, 700, 12345}) {
      for (const int64_t n : {1, 7, 512, 100'003}) {
        for (const int64_t shift : {0, 1}) {
          SCOPED_TRACE(testing::Message() << first << " " << n << " " << shift);
          const Update update{
              .step = 0.01F, .decay = 0.001F, .rounding = rounding, .seed = 5, .stream = 3, .update_index = 9};
          const at::Tensor w = (0.02 * at::randn({n + shift})).to(at::kBFloat16), u = at::randn({n + shift});
          at::Tensor mine = w.to(*device()), expected = w.clone();
          const at::Tensor u_device = u.to(*device()), sums = statistics();
          const UpdateStats stats = update_bf16(bits(expected) + shift, u.data_ptr<float>() + shift, first, n, update);
          cuda::update_bf16(bits(mine) + shift, u_device.data_ptr<float>() + shift, first, n, update, {},
                            sums.data_ptr<double>(), stream());
          ASSERT_TRUE(at::equal(mine.cpu().view(at::kShort), expected.view(at::kShort)));
          expect_same(sums, stats);
        }
      }
    }
  }
}

TEST_F(GpuUpdate, TakesBf16UpdatesAndSpecialValues) {
  const Update update{.step = 1, .seed = 2};
  at::Tensor w = (0.1 * at::randn({5000})).to(at::kBFloat16);
  w[0] = std::numeric_limits<float>::quiet_NaN();
  w[1] = std::numeric_limits<float>::infinity();
  w[2] = 3.3895e38;
  const at::Tensor u = (0.01 * at::randn({5000})).to(at::kBFloat16);
  at::Tensor mine = w.to(*device()), expected = w.clone();
  const at::Tensor u_device = u.to(*device()), sums = statistics();
  update_bf16(bits(expected), bits(u), 0, 5000, update);
  cuda::update_bf16(bits(mine), bits(u_device), 0, 5000, update, {}, sums.data_ptr<double>(), stream());
  EXPECT_TRUE(at::equal(mine.cpu().view(at::kShort), expected.view(at::kShort)));
}

TEST_F(GpuUpdate, Fp32AgreesToTheBit) {
  const Update update{.step = 0.3F, .decay = 0.01F};
  const at::Tensor w = at::randn({4097}), u = at::randn({4097});
  at::Tensor mine = w.to(*device()), expected = w.clone();
  const at::Tensor u_device = u.to(*device()), sums = statistics();
  const UpdateStats stats = update_fp32(expected.data_ptr<float>(), u.data_ptr<float>(), 4097, update);
  cuda::update_fp32(mine.data_ptr<float>(), u_device.data_ptr<float>(), 0, 4097, update, {}, sums.data_ptr<double>(),
                    stream());
  EXPECT_TRUE(at::equal(mine.cpu(), expected));
  expect_same(sums, stats);
}

TEST_F(GpuUpdate, ScalesChannels) {
  for (const int64_t columns : {96, 97}) {
    for (const bool by_row : {true, false}) {
      const int64_t rows = 211, n = rows * columns, first = 3 * columns;
      const Update update{.step = 0.01F, .seed = 4, .stream = 1};
      const at::Tensor w = (0.02 * at::randn({rows, columns})).to(at::kBFloat16), u = at::randn({rows, columns});
      const at::Tensor scale = at::rand({by_row ? rows : columns}) + 0.5;
      const at::Tensor scaled = (u * (by_row ? scale.unsqueeze(1) : scale.unsqueeze(0))).contiguous();
      at::Tensor mine = w.to(*device()), expected = w.clone();
      const at::Tensor u_device = u.to(*device()), scale_device = scale.to(*device()), sums = statistics();
      update_bf16(bits(expected), scaled.data_ptr<float>(), first, n, update);
      cuda::update_bf16(bits(mine), u_device.data_ptr<float>(), first, n, update,
                        {.scale = scale_device.data_ptr<float>(), .columns = columns, .by_row = by_row},
                        sums.data_ptr<double>(), stream());
      EXPECT_TRUE(at::equal(mine.cpu().view(at::kShort), expected.view(at::kShort))) << columns << by_row;
    }
  }
}

TEST_F(GpuUpdate, AdamAgreesToTheBit) {
  const AdamCoefficients k{.beta1 = 0.9F, .beta2 = 0.999F, .first = 10, .second = 1000, .epsilon = 1e-8F};
  constexpr int64_t n = 70'001;
  at::Tensor g = at::randn({n}), m = at::randn({n}), v = at::rand({n});
  const at::Tensor device_g = g.to(*device()), device_m = m.to(*device()), device_v = v.to(*device());
  adam_direction(g.data_ptr<float>(), m.data_ptr<float>(), v.data_ptr<float>(), n, k);
  cuda::adam_direction(device_g.data_ptr<float>(), device_m.data_ptr<float>(), device_v.data_ptr<float>(), n, k,
                       stream());
  EXPECT_TRUE(at::equal(device_m.cpu(), m));
  EXPECT_TRUE(at::equal(device_v.cpu(), v));
  EXPECT_TRUE(at::equal(device_g.cpu(), g));
}

TEST_F(GpuUpdate, ProductsOfAMatrixWithAVector) {
  for (const int64_t rows : {1, 7, 64, 513, 4099}) {
    for (const int64_t columns : {8, 248, 256, 264, 2560}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << columns);
      // Columns of a wider matrix, as a part of a fused weight has them.
      const at::Tensor wide = at::randn({rows, columns + 16}).to(at::kBFloat16), m = wide.narrow(1, 8, columns);
      const at::Tensor right = at::randn({columns}), left = at::randn({rows});
      const at::Tensor there = wide.to(*device()).narrow(1, 8, columns);
      const at::Tensor y = at::full({rows}, NAN, right.options().device(*device()));
      const at::Tensor partial = at::full({cuda::kRowSumPartials, columns}, NAN, y.options());
      const at::Tensor x = right.to(*device()), z = left.to(*device());
      cuda::row_dots(there.const_data_ptr(), rows, columns, there.stride(0), x.const_data_ptr<float>(),
                     y.data_ptr<float>(), stream());
      cuda::weighted_row_sum(there.const_data_ptr(), rows, columns, there.stride(0), z.const_data_ptr<float>(),
                             partial.data_ptr<float>(), stream());
      const auto error = [](const at::Tensor& a, const at::Tensor& b) {
        return ((a.cpu().to(at::kDouble) - b).norm() / b.norm()).item<double>();
      };
      const at::Tensor exact = m.to(at::kDouble);
      EXPECT_LT(error(y, at::mv(exact, right.to(at::kDouble))), 1e-5);
      EXPECT_LT(error(partial.sum(0), at::mv(exact.t(), left.to(at::kDouble))), 1e-5);
    }
  }
}

}  // namespace
}  // namespace lathe::kernels
