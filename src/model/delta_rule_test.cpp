// The chunked gated delta rule against its definition, token by token, in fp64; gradients against autograd through
// that.
#include "model/delta_rule.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <vector>

namespace lathe::model {
namespace {

constexpr int64_t kKeyHeads = 2, kKeyDim = 8, kValueDim = 6;

struct Problem {
  DeltaInputs in;
  at::Tensor start, d_o, d_state;

  std::vector<at::Tensor> all() const { return {in.q, in.k, in.v, in.g, in.beta, start}; }
};

at::Tensor unit_rows(at::IntArrayRef shape, at::ScalarType dtype) {
  const at::Tensor x = at::randn(shape, dtype);
  return x / x.norm(2, -1, /*keepdim=*/true);
}

// `decay` is the mean of -g.
Problem make_problem(int64_t n, int64_t ratio, double decay, at::ScalarType dtype = at::kDouble) {
  at::manual_seed(n * 10 + ratio);
  const int64_t heads = kKeyHeads * ratio;
  return {.in = {.q = unit_rows({n, kKeyHeads, kKeyDim}, dtype) / std::sqrt(static_cast<double>(kKeyDim)),
                 .k = unit_rows({n, kKeyHeads, kKeyDim}, dtype),
                 .v = at::randn({n, heads, kValueDim}, dtype),
                 .g = at::rand({n, heads}, dtype) * (-2 * decay),
                 .beta = at::rand({n, heads}, dtype)},
          .start = at::randn({heads, kKeyDim, kValueDim}, dtype),
          .d_o = at::randn({n, heads, kValueDim}, dtype),
          .d_state = at::randn({heads, kKeyDim, kValueDim}, dtype)};
}

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b).norm() / b.norm().clamp_min(1e-300)).item<double>();
}

// Gradients of <o, d_o> + <state, d_state> by autograd through the definition.
std::vector<at::Tensor> oracle(const Problem& p) {
  const at::AutoGradMode with_grad(true);
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& t : p.all()) leaves.push_back(t.to(at::kDouble).detach().clone().requires_grad_());
  const DeltaOutput out = delta_rule_by_token({leaves[0], leaves[1], leaves[2], leaves[3], leaves[4]}, leaves[5]);
  const at::Tensor sum = (out.o * p.d_o).sum() + (out.state * p.d_state).sum();
  return torch::autograd::grad({sum}, {leaves.begin(), leaves.end()});
}

std::vector<at::Tensor> ours(const Problem& p) {
  const DeltaGradient d = delta_rule_gradient(p.in, p.start, p.d_o, p.d_state);
  return {d.in.q, d.in.k, d.in.v, d.in.g, d.in.beta, d.start};
}

constexpr const char* kNames[] = {"q", "k", "v", "g", "beta", "start"};

class DeltaRule : public ::testing::TestWithParam<std::tuple<int64_t, int64_t>> {};

TEST_P(DeltaRule, InChunksIsTheRecurrence) {
  const auto [n, ratio] = GetParam();
  for (const double decay : {0.01, 1.0, 30.0}) {
    const Problem p = make_problem(n, ratio, decay);
    for (const at::Tensor& start : {p.start, at::Tensor()}) {
      const DeltaOutput expected = delta_rule_by_token(p.in, start), got = delta_rule(p.in, start);
      EXPECT_LT(relative(got.o, expected.o), 1e-12) << decay;
      EXPECT_LT(relative(got.state, expected.state), 1e-12) << decay;
    }
  }
}

TEST_P(DeltaRule, GradientIsThatOfTheRecurrence) {
  const auto [n, ratio] = GetParam();
  for (const double decay : {0.01, 1.0, 30.0}) {
    const Problem p = make_problem(n, ratio, decay);
    const auto expected = oracle(p), got = ours(p);
    for (size_t i = 0; i < expected.size(); ++i)
      EXPECT_LT(relative(got[i], expected[i]), 1e-11) << kNames[i] << " " << decay;
  }
}

// Also of g, whose gradient is small compared with the terms that a careless sum would cancel.
TEST_P(DeltaRule, GradientKeepsItsDigitsInFp32) {
  const auto [n, ratio] = GetParam();
  for (const double decay : {0.01, 1.0, 10.0}) {
    const Problem p = make_problem(n, ratio, decay, at::kFloat);
    const auto expected = oracle(p), got = ours(p);
    for (size_t i = 0; i < expected.size(); ++i)
      EXPECT_LT(relative(got[i], expected[i]), 5e-5) << kNames[i] << " " << decay;
  }
}

TEST_P(DeltaRule, ContinuesFromAnySplit) {
  const auto [n, ratio] = GetParam();
  const Problem p = make_problem(n, ratio, 0.1);
  const DeltaOutput whole = delta_rule(p.in, p.start);
  const auto part = [&](int64_t begin, int64_t count) {
    const auto rows = [&](const at::Tensor& t) { return t.narrow(0, begin, count); };
    return DeltaInputs{rows(p.in.q), rows(p.in.k), rows(p.in.v), rows(p.in.g), rows(p.in.beta)};
  };
  for (int64_t split = 1; split < n; split += 1 + n / 3) {
    const DeltaOutput first = delta_rule(part(0, split), p.start),
                      second = delta_rule(part(split, n - split), first.state);
    EXPECT_LT(relative(at::cat({first.o, second.o}, 0), whole.o), 1e-12) << split;
    EXPECT_LT(relative(second.state, whole.state), 1e-12) << split;
  }
}

INSTANTIATE_TEST_SUITE_P(LengthsAndHeadRatios, DeltaRule,
                         ::testing::Combine(::testing::Values(1, 5, 64, 65, 130), ::testing::Values(1, 2, 3)));

TEST(DeltaRuleNode, GivesAutogradTheGradient) {
  const Problem p = make_problem(70, 2, 0.5);
  const at::AutoGradMode with_grad(true);
  DeltaInputs leaves;
  for (auto [leaf, t] : {std::pair{&leaves.q, p.in.q},
                         {&leaves.k, p.in.k},
                         {&leaves.v, p.in.v},
                         {&leaves.g, p.in.g},
                         {&leaves.beta, p.in.beta}})
    *leaf = t.detach().requires_grad_();
  for (const at::Tensor& start : {p.start, at::Tensor()}) {
    const at::Tensor o = delta_rule_with_gradient(leaves, start);
    const auto got = torch::autograd::grad({o}, {leaves.q, leaves.k, leaves.v, leaves.g, leaves.beta}, {p.d_o});
    const DeltaInputs expected = delta_rule_gradient(p.in, start, p.d_o, at::Tensor()).in;
    EXPECT_TRUE(at::equal(got[0], expected.q));
    EXPECT_TRUE(at::equal(got[1], expected.k));
    EXPECT_TRUE(at::equal(got[2], expected.v));
    EXPECT_TRUE(at::equal(got[3], expected.g));
    EXPECT_TRUE(at::equal(got[4], expected.beta));
  }
}

}  // namespace
}  // namespace lathe::model
