// The operations of model/ops.h on a GPU against themselves on the CPU in fp32, forward and backward. Without a GPU
// every test skips itself.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

#include "gpu/device.h"
#include "model/cuda_attention.h"
#include "model/cuda_ops.h"
#include "model/ops.h"

namespace lathe::model {
namespace {

// The usual scale of scores, 1 / sqrt(head size).
double scale_of(const at::Tensor& q) {
  return 1 / std::sqrt(static_cast<double>(q.size(-1)));
}

// Opened before anything else of torch runs in this process.
const Result<c10::Device>& device() {
  static const Result<c10::Device> opened = gpu::open("cuda");
  return opened;
}

class GpuOps : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!device().ok()) GTEST_SKIP() << device().error().message;
    at::manual_seed(5);
  }
};

// ‖a - b‖ / ‖b‖; infinite where a is not finite.
double error(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.detach().to(at::kCPU, at::kDouble), y = b.detach().to(at::kCPU, at::kDouble);
  const double e = ((x - y).norm() / y.norm().clamp_min(1e-30)).item<double>();
  return std::isfinite(e) ? e : std::numeric_limits<double>::infinity();
}

// bf16 rounds three or four times between input and output, each time by up to 2^-9.
double tolerance(at::ScalarType dtype) {
  return dtype == at::kFloat ? 3e-6 : 6e-3;
}

constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16};
constexpr std::pair<at::ScalarType, NormStyle> kNorms[] = {{at::kFloat, NormStyle::kPlain},
                                                           {at::kFloat, NormStyle::kZeroCentred},
                                                           {at::kBFloat16, NormStyle::kPlain},
                                                           {at::kBFloat16, NormStyle::kZeroCentred}};

// A result, the gradient of x for a given gradient of the result, and what the sink received for parameter 0.
struct Outcome {
  at::Tensor y, dx, dw;
};

// op(x, sink): sink is null where nothing is differentiated.
template <class Op>
Outcome run(const at::Tensor& input, const at::Tensor& dy, Op&& op) {
  const at::AutoGradMode with_grad(true);
  weights::GradientSet sink(1);
  const at::Tensor x = input.detach().requires_grad_();
  const at::Tensor y = op(x, &sink);
  const at::Tensor dx = torch::autograd::grad({y}, {x}, {dy.to(y.device(), y.scalar_type())})[0];
  return {y.detach(), dx, sink.vectors[0]};
}

// `op` of x, rounded to `dtype`, on the GPU and on the CPU.
template <class Op>
void compare(const at::Tensor& x, at::IntArrayRef result_shape, at::ScalarType dtype, Op&& op) {
  const at::Tensor rounded = x.to(dtype), dy = at::randn(result_shape).to(dtype);
  const Outcome expected = run(rounded.to(at::kFloat), dy.to(at::kFloat), op);
  const Outcome actual = run(rounded.to(*device()), dy, op);
  EXPECT_EQ(actual.y.scalar_type(), dtype);
  EXPECT_LT(error(actual.y, expected.y), tolerance(dtype));
  EXPECT_LT(error(actual.dx, expected.dx), tolerance(dtype));
  if (expected.dw.defined()) {
    EXPECT_LT(error(actual.dw, expected.dw), tolerance(dtype));
  }
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(at::equal(op(rounded.to(*device()), nullptr), actual.y)) << "serving and teaching differ";
}

// A parameter where the operands are.
class Weight {
 public:
  explicit Weight(at::Tensor w) : w_(std::move(w)) {}
  const weights::Parameter& at_place_of(const at::Tensor& x) {
    parameter_.data = w_.to(x.device(), x.scalar_type());
    return parameter_;
  }

 private:
  at::Tensor w_;
  weights::Parameter parameter_{.name = "w"};
};

TEST_F(GpuOps, RmsNormOfRows) {
  for (const auto& [dtype, style] : kNorms) {
    for (const int64_t n : {8, 31, 128, 1000, 1024, 2047, 4096, 8192}) {
      SCOPED_TRACE(testing::Message() << n << " " << dtype);
      Weight w(at::randn({n}).to(dtype).to(at::kFloat));
      compare(at::randn({701, n}), {701, n}, dtype,
              [&, style = style](const at::Tensor& x, weights::GradientSink* sink) {
                return rms_norm(x, w.at_place_of(x), 1e-6, style, sink);
              });
    }
  }
}

// Heads of q inside a fused qkv, as the model takes them.
TEST_F(GpuOps, RmsNormAndRotationOfHeads) {
  for (const auto& [dtype, style] : kNorms) {
    for (const int64_t size : {16, 30, 128, 256}) {
      SCOPED_TRACE(testing::Message() << size << " " << dtype);
      Weight w(at::randn({size}).to(dtype).to(at::kFloat));
      const at::Tensor angle = at::randn({77, size / 2});
      const auto table = [](const at::Tensor& t, const at::Tensor& x) { return t.to(x.scalar_type()).to(x.device()); };
      // Rounded once, so that both sides turn by the same angle.
      const at::Tensor cos = angle.cos().to(dtype).to(at::kFloat), sin = angle.sin().to(dtype).to(at::kFloat);
      compare(at::randn({77, 6, size}), {77, 3, size}, dtype,
              [&, style = style](const at::Tensor& x, weights::GradientSink* sink) {
                return rms_norm(x.narrow(1, 1, 3), w.at_place_of(x), 1e-6, style, sink);
              });
      for (const int64_t half : {size / 2, size / 8}) {  // all of a head, or a part of it
        compare(at::randn({77, 6, size}), {77, 3, size}, dtype, [&](const at::Tensor& x, weights::GradientSink*) {
          return rotate(x.narrow(1, 2, 3), table(cos.narrow(1, 0, half).contiguous(), x),
                        table(sin.narrow(1, 0, half).contiguous(), x));
        });
      }
    }
  }
}

TEST_F(GpuOps, SiluMul) {
  for (const at::ScalarType dtype : kDtypes) {
    for (const int64_t inner : {1, 36, 1536}) {
      SCOPED_TRACE(testing::Message() << inner << " " << dtype);
      at::Tensor x = at::randn({53, 2 * inner}) * 4;
      x[0][0] = 90, x[1][0] = -90;
      compare(x, {53, inner}, dtype, [](const at::Tensor& t, weights::GradientSink*) { return silu_mul(t); });
    }
  }
}

TEST_F(GpuOps, SoftMaxStatisticsAndGradient) {
  for (const at::ScalarType dtype : kDtypes) {
    for (const int64_t vocabulary : {7, 1000, 151936}) {
      SCOPED_TRACE(testing::Message() << vocabulary << " " << dtype);
      const int64_t rows = 19;
      const at::Tensor rounded = (at::randn({rows, vocabulary}) * 3).to(dtype);
      const at::Tensor targets = at::randint(vocabulary, {rows}, at::kLong), slopes = at::randn({rows});
      const at::Tensor log_p = at::log_softmax(rounded.to(at::kDouble), -1);
      const at::Tensor expected =
          slopes.unsqueeze(1) * (at::one_hot(targets, vocabulary).to(at::kDouble) - log_p.exp());

      at::Tensor logits = rounded.to(*device());
      const at::Tensor on_device = targets.to(*device());
      const auto statistics = soft_max_statistics(logits, on_device);
      EXPECT_LT(error(statistics.log_p, log_p.gather(1, targets.unsqueeze(1)).squeeze(1)), 3e-6);
      soft_max_gradient_(logits, on_device, slopes.to(*device()), statistics.log_sum);
      EXPECT_LT(error(logits, expected), tolerance(dtype));
    }
  }
}

struct AttentionCase {
  int64_t queries, keys, heads, kv_heads, size;
};

struct AttentionGradients {
  at::Tensor out, dq, dk, dv;
};

template <class Attention>
AttentionGradients differentiate(const at::Tensor (&qkv)[3], const at::Tensor& dy, Attention&& attend) {
  const at::AutoGradMode with_grad(true);
  const at::Tensor q = qkv[0].detach().requires_grad_(), k = qkv[1].detach().requires_grad_(),
                   v = qkv[2].detach().requires_grad_();
  const at::Tensor out = attend(q, k, v);
  const auto gradients = torch::autograd::grad({out}, {q, k, v}, {dy});
  return {out.detach(), gradients[0], gradients[1], gradients[2]};
}

void compare_attention(const AttentionCase& c, cuda::AttentionKernel kernel, at::ScalarType dtype, bool with_gradient) {
  SCOPED_TRACE(testing::Message() << c.queries << " queries, " << c.keys << " keys, " << c.heads << "/" << c.kv_heads
                                  << " heads of " << c.size << ", kernel " << static_cast<int>(kernel));
  const at::Tensor rounded[3] = {at::randn({c.queries, c.heads, c.size}).to(dtype),
                                 at::randn({c.kv_heads, c.keys, c.size}).to(dtype),
                                 at::randn({c.kv_heads, c.keys, c.size}).to(dtype)};
  const at::Tensor dy = at::randn({c.queries, c.heads * c.size}).to(dtype);
  at::Tensor wide[3], on_device[3];
  for (int i = 0; i < 3; ++i) wide[i] = rounded[i].to(at::kFloat), on_device[i] = rounded[i].to(*device());
  const double scale = 0.7 * scale_of(wide[0]);  // not the usual one: it must arrive
  const auto oracle = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return attention(q, k, v, scale);
  };
  const auto chosen = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return cuda::attention(q, k, v, scale, kernel);
  };
  if (!with_gradient) {
    const at::NoGradGuard no_grad;
    EXPECT_LT(error(chosen(on_device[0], on_device[1], on_device[2]), oracle(wide[0], wide[1], wide[2])),
              tolerance(dtype));
    return;
  }
  const auto expected = differentiate(wide, dy.to(at::kFloat), oracle);
  const auto actual = differentiate(on_device, dy.to(*device()), chosen);
  EXPECT_LT(error(actual.out, expected.out), tolerance(dtype));
  EXPECT_LT(error(actual.dq, expected.dq), 2 * tolerance(dtype));
  EXPECT_LT(error(actual.dk, expected.dk), 2 * tolerance(dtype));
  EXPECT_LT(error(actual.dv, expected.dv), 2 * tolerance(dtype));
}

TEST_F(GpuOps, AttentionIsAlignedBottomRightWithItsGradients) {
  using enum cuda::AttentionKernel;
  for (const AttentionCase& c : {AttentionCase{1, 77, 4, 2, 128}, AttentionCase{9, 9, 4, 4, 64},
                                 AttentionCase{37, 101, 4, 1, 128}, AttentionCase{130, 700, 6, 2, 256}}) {
    compare_attention(c, kFlash, at::kBFloat16, /*with_gradient=*/true);
    compare_attention(c, kPlain, at::kBFloat16, /*with_gradient=*/true);
    compare_attention(c, kPlain, at::kFloat, /*with_gradient=*/true);
  }
}

TEST_F(GpuOps, CudnnAttentionWithAndWithoutAPast) {
  using enum cuda::AttentionKernel;
  for (const int64_t size : {128, 256}) {
    compare_attention({1024, 1024, 4, 2, size}, kCudnn, at::kBFloat16, /*with_gradient=*/true);
    compare_attention({1024, 3072, 4, 2, size}, kCudnn, at::kBFloat16, /*with_gradient=*/false);
  }
}

// Keys and values as a SequenceState hands them out: the first part of a longer cache.
TEST_F(GpuOps, AttentionReadsACacheInPlace) {
  using enum cuda::AttentionKernel;
  const at::NoGradGuard no_grad;
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(*device());
  const at::Tensor q = at::randn({1024, 8, 128}, options), cache = at::randn({2, 2, 4096, 128}, options);
  const at::Tensor k = cache[0].narrow(1, 0, 2048), v = cache[1].narrow(1, 0, 2048);
  const at::Tensor expected = cuda::attention(q, k.contiguous(), v.contiguous(), scale_of(q), kPlain);
  EXPECT_LT(error(cuda::attention(q, k, v, scale_of(q), kFlash), expected), tolerance(at::kBFloat16));
  EXPECT_LT(error(cuda::attention(q, k, v, scale_of(q), kCudnn), expected), tolerance(at::kBFloat16));
}

}  // namespace
}  // namespace lathe::model
