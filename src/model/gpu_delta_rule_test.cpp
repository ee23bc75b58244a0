// The gated delta rule on a GPU's tensor cores against the recurrence, and for long sequences the chunked form, in
// fp64. Without a GPU every test skips itself.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <random>

#include "gpu/device.h"
#include "model/cuda_delta_rule.h"

namespace lathe::model {
namespace {

// Opened before anything else of torch runs in this process.
const Result<c10::Device>& device() {
  static const Result<c10::Device> opened = gpu::open("cuda");
  return opened;
}

constexpr int64_t kSize = 128;
// bf16 keeps eight digits; what is checked comes from sums of products of such numbers, rounded once or twice more.
constexpr double kTolerance = 8e-3;

struct Case {
  int64_t tokens, key_heads, ratio;
  double decay;  // the mean of -g
  bool start = true;
};

struct Problem {
  DeltaInputs in;
  at::Tensor start, d_o, d_state;
};

at::Tensor unit(const at::Tensor& x) {
  return x / x.norm(2, -1, /*keepdim=*/true);
}

Problem make_problem(const Case& c) {
  const auto options = at::TensorOptions().device(*device()).dtype(at::kFloat);
  const int64_t heads = c.key_heads * c.ratio;
  const auto normal = [&](int64_t count) { return at::randn({c.tokens, count, kSize}, options); };
  Problem p{.in = {.q = (unit(normal(c.key_heads)) / std::sqrt(static_cast<double>(kSize))).to(at::kBFloat16),
                   // Keys have a direction in common, as a model's have: the triangle is then far from the identity.
                   .k = unit(normal(c.key_heads) + 0.7 * at::randn({1, c.key_heads, kSize}, options)).to(at::kBFloat16),
                   .v = normal(heads).to(at::kBFloat16),
                   .g = at::rand({c.tokens, heads}, options) * (-2 * c.decay),
                   .beta = at::rand({c.tokens, heads}, options)},
            .d_o = normal(heads).to(at::kBFloat16)};
  if (c.start) p.start = at::randn({heads, kSize, kSize}, options);
  if (c.start) p.d_state = at::randn({heads, kSize, kSize}, options);
  return p;
}

at::Tensor wide(const at::Tensor& t) {
  return t.defined() ? t.to(at::kDouble) : t;
}
DeltaInputs wide(const DeltaInputs& in) {
  return {wide(in.q), wide(in.k), wide(in.v), wide(in.g), wide(in.beta)};
}

// ‖a - b‖ / ‖b‖; infinite where a is not finite.
double error(const at::Tensor& a, const at::Tensor& b) {
  const double e = ((wide(a) - b).norm() / b.norm().clamp_min(1e-30)).item<double>();
  return std::isfinite(e) ? e : std::numeric_limits<double>::infinity();
}

// Memory that is handed out next holds NaN: what a kernel does not write is seen.
void poison() {
  std::vector<at::Tensor> blocks;
  for (const int64_t bytes : {int64_t{64} << 20, int64_t{16} << 20, int64_t{4} << 20, int64_t{1} << 19})
    for (int i = 0; i < 8; ++i)
      blocks.push_back(at::full({bytes / 4}, std::numeric_limits<float>::quiet_NaN(),
                                at::TensorOptions().device(*device()).dtype(at::kFloat)));
}

struct Named {
  const char* name;
  at::Tensor got, expected;
};

std::vector<Named> pairs(const DeltaOutput& got, const DeltaOutput& expected) {
  return {{"o", got.o, expected.o}, {"state", got.state, expected.state}};
}
std::vector<Named> pairs(const DeltaGradient& got, const DeltaGradient& expected) {
  return {{"q", got.in.q, expected.in.q},          {"k", got.in.k, expected.in.k},
          {"v", got.in.v, expected.in.v},          {"g", got.in.g, expected.in.g},
          {"beta", got.in.beta, expected.in.beta}, {"start", got.start, expected.start}};
}

template <class Result>
void expect_close(const Result& got, const Result& expected) {
  for (const Named& pair : pairs(got, expected)) EXPECT_LT(error(pair.got, pair.expected), kTolerance) << pair.name;
}
template <class Result>
void expect_same(const Result& got, const Result& expected) {
  for (const Named& pair : pairs(got, expected)) EXPECT_TRUE(at::equal(pair.got, pair.expected)) << pair.name;
}

class GpuDeltaRule : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!device().ok()) GTEST_SKIP() << device().error().message;
    at::manual_seed(11);
  }
};

// Gradients of <o, d_o> + <state, d_state> by autograd through the recurrence, in fp64.
DeltaGradient by_token(const Problem& p) {
  const at::AutoGradMode with_grad(true);
  const DeltaInputs in = wide(p.in);
  const int64_t heads = in.v.size(1);
  const at::Tensor start = p.start.defined() ? wide(p.start) : at::zeros({heads, kSize, kSize}, in.v.options());
  std::vector<at::Tensor> leaves{in.q, in.k, in.v, in.g, in.beta, start};
  for (at::Tensor& leaf : leaves) leaf = leaf.detach().clone().requires_grad_();
  const DeltaOutput out = delta_rule_by_token({leaves[0], leaves[1], leaves[2], leaves[3], leaves[4]}, leaves[5]);
  at::Tensor sum = (out.o * wide(p.d_o)).sum();
  if (p.d_state.defined()) sum = sum + (out.state * wide(p.d_state)).sum();
  const auto d = torch::autograd::grad({sum}, leaves);
  return {.in = {d[0], d[1], d[2], d[3], d[4]}, .start = d[5]};
}

void compare(const Case& c) {
  SCOPED_TRACE(testing::Message() << c.tokens << " tokens, " << c.key_heads << " key heads, " << c.ratio
                                  << " value heads each, decay " << c.decay << ", start " << c.start);
  const at::NoGradGuard no_grad;
  const Problem p = make_problem(c);
  const bool few = c.tokens <= 130;
  poison();
  const DeltaOutput out = cuda::delta_rule(p.in, p.start);
  poison();
  const DeltaGradient gradient = cuda::delta_rule_gradient(p.in, p.start, p.d_o, p.d_state);
  expect_close(out, few ? delta_rule_by_token(wide(p.in), wide(p.start)) : delta_rule(wide(p.in), wide(p.start)));
  expect_close(gradient,
               few ? by_token(p) : delta_rule_gradient(wide(p.in), wide(p.start), wide(p.d_o), wide(p.d_state)));
  poison();
  expect_same(cuda::delta_rule(p.in, p.start), out);
  expect_same(cuda::delta_rule_gradient(p.in, p.start, p.d_o, p.d_state), gradient);
}

TEST_F(GpuDeltaRule, IsTheRecurrenceAtEdgesOfChunks) {
  for (const int64_t tokens : {1, 2, 63, 64, 65, 127, 130})
    for (const int64_t ratio : {1, 3}) compare({tokens, 2, ratio, 0.3, tokens % 2 == 0});
}

TEST_F(GpuDeltaRule, IsTheChunkedFormOverLongSequences) {
  for (const int64_t tokens : {511, 513, 1000, 2049}) compare({tokens, 2, 2, 0.02});
  compare({1000, 16, 3, 0.05});
  compare({777, 16, 2, 0.1, false});
}

TEST_F(GpuDeltaRule, AnyDecay) {
  for (const double decay : {0.0, 0.001, 1.0, 30.0}) compare({300, 2, 2, decay});
}

TEST_F(GpuDeltaRule, RandomShapes) {
  std::mt19937 random(3);
  for (int i = 0; i < 12; ++i) {
    const auto draw = [&](int64_t most) { return static_cast<int64_t>(1 + random() % most); };
    compare({draw(900), draw(5), draw(5), 0.001 * static_cast<double>(draw(1000)), draw(2) == 1});
  }
}

// Decoding: fp32 but for o, which is rounded once.
TEST_F(GpuDeltaRule, StepsAreTheRecurrenceInFp32) {
  const at::NoGradGuard no_grad;
  for (const int64_t tokens : {1, 2, 3, 4}) {
    for (const bool start : {true, false}) {
      SCOPED_TRACE(testing::Message() << tokens << " tokens, start " << start);
      const Problem p = make_problem({tokens, 2, 3, 0.5, start});
      poison();
      const DeltaOutput out{.o = at::empty(p.in.v.sizes(), p.in.v.options()),
                            .state = at::empty({6, kSize, kSize}, p.in.g.options())};
      cuda::run_delta_steps(p.in, p.start, out.o, out.state);
      const DeltaOutput expected = delta_rule_by_token(wide(p.in), wide(p.start));
      EXPECT_LT(error(out.o, expected.o), 3e-3);
      EXPECT_LT(error(out.state, expected.state), 1e-6);
    }
  }
}

// As the model hands them over: parts of one tensor.
TEST_F(GpuDeltaRule, ReadsHeadsInsideAFusedTensor) {
  const at::NoGradGuard no_grad;
  Problem p = make_problem({200, 2, 2, 0.1});
  const DeltaOutput expected = cuda::delta_rule(p.in, p.start);
  const at::Tensor fused = at::cat({p.in.q, p.in.k, p.in.v}, 1);
  p.in.q = fused.narrow(1, 0, 2), p.in.k = fused.narrow(1, 2, 2), p.in.v = fused.narrow(1, 4, 4);
  expect_same(cuda::delta_rule(p.in, p.start), expected);
}

TEST_F(GpuDeltaRule, ContinuesFromAnySplit) {
  const at::NoGradGuard no_grad;
  const Problem p = make_problem({300, 2, 2, 0.1});
  const DeltaOutput whole = cuda::delta_rule(p.in, p.start);
  const auto part = [&](int64_t begin, int64_t count) {
    const auto rows = [&](const at::Tensor& t) { return t.narrow(0, begin, count); };
    return DeltaInputs{rows(p.in.q), rows(p.in.k), rows(p.in.v), rows(p.in.g), rows(p.in.beta)};
  };
  for (const int64_t split : {1, 64, 101, 299}) {
    const DeltaOutput first = cuda::delta_rule(part(0, split), p.start),
                      second = cuda::delta_rule(part(split, 300 - split), first.state);
    EXPECT_LT(error(at::cat({first.o, second.o}, 0), wide(whole.o)), kTolerance) << split;
    EXPECT_LT(error(second.state, wide(whole.state)), kTolerance) << split;
  }
}

}  // namespace
}  // namespace lathe::model
