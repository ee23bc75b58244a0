// The CPU kernels of a layer against their ATen twins in fp32 and bf16, forward and backward.
#include "model/ops.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <torch/csrc/autograd/autograd.h>
#include <cmath>

#include "kernels/serving.h"
#include "model/cpu_attention.h"
#include "model/cpu_ops.h"

namespace lathe::model {
namespace {

// The usual scale of scores, 1 / sqrt(head size).
double scale_of(const at::Tensor& q) {
  return 1 / std::sqrt(static_cast<double>(q.size(-1)));
}

weights::Parameter parameter(const at::Tensor& data) {
  return {.name = "w", .data = data};
}

// Largest difference as a share of the largest value: bf16 has 8 bits, so one unit in the last place is up to 2^-8.
double worst(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kFloat) - b.to(at::kFloat)).abs().max() / b.to(at::kFloat).abs().max()).item<double>();
}

class ServingOps : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { at::manual_seed(3); }
  static at::Tensor bf16(at::IntArrayRef shape) { return at::randn(shape).to(at::kBFloat16); }
  const at::NoGradGuard no_grad_;
};

TEST_P(ServingOps, LinearOfFewRows) {
  const int64_t in = GetParam();
  const auto w = parameter(bf16({37, in})), bias = parameter(bf16({37}));
  for (int64_t rows = 1; rows <= kernels::kFewRows; ++rows) {
    const at::Tensor x = bf16({rows, in});
    const at::Tensor expected = at::linear(x.to(at::kFloat), w.data.to(at::kFloat), bias.data.to(at::kFloat));
    EXPECT_LT(worst(linear(x, w, &bias, nullptr), expected), 1.0 / 256) << rows;
    EXPECT_LT(worst(linear(x, w, nullptr, nullptr), expected - bias.data.to(at::kFloat)), 1.0 / 256) << rows;
  }
}

TEST_P(ServingOps, RmsNorm) {
  const int64_t n = GetParam();
  const auto w = parameter(bf16({n}));
  const at::Tensor x = bf16({5, 2, n});
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor twin = (wide * at::rsqrt(wide.square().mean(-1, true) + 1e-5)).to(at::kBFloat16) * w.data;
  EXPECT_LT(worst(rms_norm(x, w, 1e-5, NormStyle::kPlain, nullptr), twin), 1.0 / 256);
  EXPECT_LT(worst(rms_norm(x.transpose(0, 1), w, 1e-5, NormStyle::kPlain, nullptr), twin.transpose(0, 1)), 1.0 / 256);
}

TEST_P(ServingOps, SoftMaxStatisticsAndGradient) {
  const int64_t vocabulary = GetParam();
  const at::Tensor logits = bf16({9, vocabulary}) * 6;
  logits[0] += 100, logits[1] -= 300;
  const at::Tensor targets = at::randint(vocabulary, {9}, at::kLong), slopes = at::randn({9}, at::kFloat);
  const at::Tensor log_p = at::log_softmax(logits.to(at::kDouble), -1);
  const SoftMaxStatistics found = soft_max_statistics(logits, targets);
  EXPECT_LT((found.log_sum - logits.to(at::kDouble).logsumexp(-1)).abs().max().item<double>(), 1e-4);
  EXPECT_LT((found.log_p - log_p.gather(1, targets.unsqueeze(1)).squeeze(1)).abs().max().item<double>(), 1e-4);
  at::Tensor gradient = logits.clone();
  soft_max_gradient_(gradient, targets, slopes, found.log_sum);
  const at::Tensor expected = slopes.unsqueeze(1) * (at::one_hot(targets, vocabulary) - log_p.exp());
  EXPECT_LE((gradient - expected).abs().max().item<double>(), 1e-6 + expected.abs().max().item<double>() / 256);
}

TEST_P(ServingOps, SoftMaxOfALogitThatIsNoNumberIsNone) {
  const at::Tensor logits = bf16({3, GetParam()});
  logits[1][0] = NAN, logits[2][0] = INFINITY;
  const at::Tensor log_p = soft_max_statistics(logits, at::zeros({3}, at::kLong)).log_p;
  EXPECT_TRUE(log_p[0].isfinite().item<bool>());
  EXPECT_TRUE(log_p[1].isnan().item<bool>());
  EXPECT_FALSE(log_p[2].isfinite().item<bool>());
}

TEST_P(ServingOps, RotateIsBitForBitTheTwin) {
  const int64_t half = GetParam();
  const at::Tensor qkv = bf16({7, 5, 2 * half}), angle = at::randn({7, half});
  const at::Tensor cos = angle.cos().to(at::kBFloat16), sin = angle.sin().to(at::kBFloat16);
  const at::Tensor q = qkv.narrow(1, 1, 3);  // heads of a fused tensor
  const at::Tensor a = q.narrow(-1, 0, half), b = q.narrow(-1, half, half), c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  EXPECT_TRUE(at::equal(rotate(q, cos, sin), at::cat({a * c - b * s, b * c + a * s}, -1)));
}

TEST_P(ServingOps, SiluMul) {
  const int64_t inner = GetParam();
  at::Tensor x = bf16({3, 2 * inner}) * 4;
  x[0][0] = 200;
  x[1][0] = -200;
  const at::Tensor twin = at::silu(x.narrow(-1, 0, inner)) * x.narrow(-1, inner, inner);
  EXPECT_LT(worst(silu_mul(x), twin), 1.0 / 256);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ServingOps, ::testing::Values(1, 8, 31, 32, 33, 576));

// Gradients in bf16 of what ops.h gives, against autograd's own in fp32 through the plain formula.
class TeachingOps : public ServingOps {
 protected:
  using Operation = std::function<at::Tensor(const at::Tensor&)>;
  static at::Tensor gradient(const at::Tensor& x, const at::Tensor& dy, const Operation& operation) {
    const at::AutoGradMode with_grad(true);
    const at::Tensor leaf = x.detach().requires_grad_();
    return torch::autograd::grad({operation(leaf)}, {leaf}, {dy})[0];
  }
  static void expect_gradient(const at::Tensor& x, const at::Tensor& dy, const Operation& operation,
                              const Operation& formula) {
    const at::Tensor expected = gradient(x.to(at::kFloat), dy.to(at::kFloat), formula);
    EXPECT_LT(worst(gradient(x, dy, operation), expected), 1.0 / 128);
  }
};

struct VectorSink final : weights::GradientSink {
  void linear(const weights::Parameter&, at::Tensor, at::Tensor) override { ADD_FAILURE(); }
  void lookup(const weights::Parameter&, at::Tensor, at::Tensor) override { ADD_FAILURE(); }
  void vector(const weights::Parameter&, at::Tensor g) override { gradient = std::move(g); }
  at::Tensor gradient;
};

TEST_P(TeachingOps, RmsNorm) {
  const int64_t n = GetParam();
  const auto w = parameter(bf16({n}));
  const at::Tensor x = bf16({11, 3, n}).transpose(0, 1), dy = bf16({3, 11, n});
  const at::Tensor wide_w = w.data.to(at::kFloat);
  VectorSink sink;
  const auto formula = [&](const at::Tensor& t, const at::Tensor& v) {
    return t * at::rsqrt(t.square().mean(-1, true) + 1e-5) * v;
  };
  expect_gradient(
      x, dy, [&](const at::Tensor& t) { return rms_norm(t, w, 1e-5, NormStyle::kPlain, &sink); },
      [&](const at::Tensor& t) { return formula(t, wide_w); });
  const at::Tensor dw =
      gradient(wide_w, dy.to(at::kFloat), [&](const at::Tensor& v) { return formula(x.to(at::kFloat), v); });
  EXPECT_EQ(sink.gradient.scalar_type(), at::kFloat);
  EXPECT_LT(worst(sink.gradient, dw), 1e-5);
}

TEST_P(TeachingOps, RmsNormsBitsDoNotDependOnThreads) {
  const int64_t n = GetParam();
  const auto w = parameter(bf16({n}));
  const at::Tensor x = bf16({257, n}), dy = bf16({257, n});
  VectorSink one, all;
  const int threads = at::get_num_threads();
  const auto through = [&](VectorSink& sink) {
    return gradient(x, dy, [&](const at::Tensor& t) { return rms_norm(t, w, 1e-5, NormStyle::kPlain, &sink); });
  };
  at::set_num_threads(1);
  const at::Tensor alone = through(one);
  at::set_num_threads(std::max(threads, 3));
  const at::Tensor together = through(all);
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(alone, together));
  EXPECT_TRUE(at::equal(one.gradient, all.gradient));
}

TEST_P(TeachingOps, Rotate) {
  const int64_t half = GetParam();
  const at::Tensor angle = at::randn({7, half});
  const at::Tensor cos = angle.cos().to(at::kBFloat16), sin = angle.sin().to(at::kBFloat16);
  const at::Tensor qkv = bf16({7, 5, 2 * half}), dy = bf16({7, 3, 2 * half});
  expect_gradient(
      qkv, dy, [&](const at::Tensor& t) { return rotate(t.narrow(1, 1, 3), cos, sin); },
      [&](const at::Tensor& t) {
        const at::Tensor q = t.narrow(1, 1, 3), a = q.narrow(-1, 0, half), b = q.narrow(-1, half, half);
        const at::Tensor c = cos.to(at::kFloat).unsqueeze(1), s = sin.to(at::kFloat).unsqueeze(1);
        return at::cat({a * c - b * s, b * c + a * s}, -1);
      });
}

TEST_P(TeachingOps, SiluMul) {
  const int64_t inner = GetParam();
  at::Tensor x = bf16({3, 2 * inner}) * 4;
  x[0][0] = 200;
  x[1][0] = -200;
  expect_gradient(x, bf16({3, inner}), silu_mul,
                  [&](const at::Tensor& t) { return at::silu(t.narrow(-1, 0, inner)) * t.narrow(-1, inner, inner); });
}

INSTANTIATE_TEST_SUITE_P(Sizes, TeachingOps, ::testing::Values(1, 8, 31, 32, 33, 576));

TEST(Attention, IsAlignedBottomRight) {
  at::manual_seed(3);
  const at::Tensor q = at::randn({9, 4, 8}), k = at::randn({2, 9, 8}), v = at::randn({2, 9, 8});
  const at::Tensor whole = attention(q, k, v, scale_of(q));
  for (int64_t past = 0; past < 9; ++past) {
    EXPECT_LT(worst(attention(q.narrow(0, past, 9 - past), k, v, scale_of(q)), whole.narrow(0, past, 9 - past)), 1e-5)
        << past;
  }
  at::Tensor changed = k.clone();
  changed.select(1, 8).zero_();
  EXPECT_LT(worst(attention(q, changed, v, scale_of(q)).narrow(0, 0, 8), whole.narrow(0, 0, 8)), 1e-7)
      << "a later key must not be seen";
}

struct AttentionCase {
  int64_t queries, keys, heads, kv_heads, size;
};

class CpuAttention : public ::testing::TestWithParam<AttentionCase> {
 protected:
  struct Results {
    at::Tensor out, dq, dk, dv;
  };
  template <class Attend>
  static Results differentiate(const at::Tensor (&qkv)[3], const at::Tensor& dy, at::ScalarType dtype,
                               Attend&& attend) {
    const at::AutoGradMode with_grad(true);
    at::Tensor q = qkv[0].to(dtype).detach().requires_grad_(), k = qkv[1].to(dtype).detach().requires_grad_(),
               v = qkv[2].to(dtype).detach().requires_grad_();
    const at::Tensor out = attend(q, k, v);
    const auto gradients = torch::autograd::grad({out}, {q, k, v}, {dy.to(dtype)});
    return {out.detach(), gradients[0], gradients[1], gradients[2]};
  }
  static double error(const at::Tensor& a, const at::Tensor& exact) {
    return ((a.to(at::kDouble) - exact).norm() / exact.norm()).item<double>();
  }
};

// Against fp64, with bf16's own error: 2^-8 is its unit, and a result has been rounded several times.
TEST_P(CpuAttention, AgreesWithFp64ForwardAndBackward) {
  const auto [n, m, heads, kv_heads, size] = GetParam();
  at::manual_seed(5);
  const auto bf16 = [](at::IntArrayRef shape) { return at::randn(shape).to(at::kBFloat16); };
  // Heads of a fused projection, and keys of a cache: neither lies without gaps.
  const at::Tensor qkv[] = {bf16({n, heads + 3, size}).narrow(1, 1, heads),
                            bf16({kv_heads, m + 5, size}).narrow(1, 0, m),
                            bf16({kv_heads, m + 5, size}).narrow(1, 0, m)};
  const at::Tensor dy = bf16({n, heads * size});
  ASSERT_TRUE(cpu::can_attend(qkv[0]));
  const double scale = 0.7 * scale_of(qkv[0]);  // not the usual one: it must arrive
  const auto attend = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return attention(q, k, v, scale);
  };
  const Results exact = differentiate(qkv, dy, at::kDouble, attend);
  const Results ours = differentiate(qkv, dy, at::kBFloat16, attend);
  EXPECT_LT(error(ours.out, exact.out), 1.0 / 128);
  EXPECT_LT(error(ours.dq, exact.dq), 1.0 / 64);
  EXPECT_LT(error(ours.dk, exact.dk), 1.0 / 64);
  EXPECT_LT(error(ours.dv, exact.dv), 1.0 / 128);
}

// One block and several, with and without a past, heads that share keys and that do not.
INSTANTIATE_TEST_SUITE_P(Shapes, CpuAttention,
                         ::testing::Values(AttentionCase{5, 5, 2, 2, 8}, AttentionCase{64, 128, 9, 3, 64},
                                           AttentionCase{256, 256, 4, 1, 32}, AttentionCase{257, 300, 4, 2, 64},
                                           AttentionCase{40, 40000, 16, 2, 16}));

}  // namespace
}  // namespace lathe::model
