#include "optim/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

#include "optim/apollo.h"
#include "optim/factors.h"

namespace lathe::optim {
namespace {

using weights::GradientSet;
using weights::MatrixGradient;
using weights::Parameter;
using weights::Part;

// A store of one fused matrix [10 + 6, 8] and, behind it, a vector [8] and a vocabulary table [40, 8].
class Fixture : public ::testing::Test {
 protected:
  Fixture() { at::manual_seed(7); }

  static weights::WeightStore make_store(at::ScalarType dtype) {
    weights::WeightStore store;
    const auto options = at::TensorOptions().dtype(dtype);
    store.add("fused", at::randn({16, 8}).to(options), {{"a", 10}, {"b", 6}}, false);
    store.add("norm", at::ones({8}, options), {{"norm", 8}}, false);
    store.add("table", at::randn({40, 8}).to(options), {{"table", 40}}, true);
    return store;
  }

  static GradientSet make_gradients(const weights::WeightStore& store, double scale = 1) {
    GradientSet set(store.parameters().size());
    const auto dtype = store.parameters()[0].data.scalar_type();
    set.linear(store.parameters()[0], at::randn({5, 8}).to(dtype), (scale * at::randn({5, 16})).to(dtype));
    set.linear(store.parameters()[0], at::randn({3, 8}).to(dtype), (scale * at::randn({3, 16})).to(dtype));
    set.vector(store.parameters()[1], scale * at::randn({8}));
    set.linear(store.parameters()[2], at::randn({4, 8}).to(dtype), (scale * at::randn({4, 40})).to(dtype));
    set.lookup(store.parameters()[2], at::tensor({3, 9, 3, 39}, at::kLong), (scale * at::randn({4, 8})).to(dtype));
    return set;
  }

  static at::Tensor dense(const MatrixGradient& g, const Parameter& p) {
    at::Tensor sum = at::zeros(p.data.sizes(), at::kFloat);
    for (size_t i = 0; i < g.x.size(); ++i) sum += at::mm(g.dy[i].to(at::kFloat).t(), g.x[i].to(at::kFloat));
    for (size_t i = 0; i < g.ids.size(); ++i) sum.index_add_(0, g.ids[i], g.dx[i].to(at::kFloat));
    return sum;
  }
};

double relative(const at::Tensor& a, const at::Tensor& b) { return ((a - b).norm() / b.norm()).item<double>(); }

// One APOLLO step of a part, as propose() takes it.
ApolloStep next_step(const PartGradient& gradient, const Moments& moments, const OptimizerConfig& config) {
  const int64_t a = gradient.dense().rows(), b = gradient.dense().columns();
  const auto [granularity, rank] = scaling_of(config, a, b, /*vocabulary=*/false);
  const at::Tensor p = projection(config, rank, std::min(a, b), gradient.tall(), 1, moments.updates);
  return apollo_step(gradient, std::sqrt(gradient.squared_norm()), p, granularity, moments, config);
}

using Factored = Fixture;

TEST_F(Factored, EveryQuantityIsThatOfTheDenseGradient) {
  const auto store = make_store(at::kFloat);
  const GradientSet set = make_gradients(store);
  for (const size_t index : {size_t{0}, size_t{2}}) {
    const Parameter& parameter = store.parameters()[index];
    const at::Tensor whole = dense(set.matrices[index], parameter);
    const Factors factors = gather(set.matrices[index], parameter);
    for (const Part& part : parameter.parts) {
      const PartGradient gradient(factors, part);
      const at::Tensor g = whole.narrow(0, part.row_begin, part.rows);
      const bool tall = part.rows >= 8;
      ASSERT_EQ(gradient.tall(), tall);
      const at::Tensor p = at::randn({2, tall ? 8 : part.rows});
      EXPECT_LT(relative(gradient.project(p), tall ? at::mm(g, p.t()) : at::mm(p, g)), 1e-5) << part.name;
      EXPECT_NEAR(gradient.squared_norm(), g.square().sum().item<double>(), 1e-4 * g.square().sum().item<double>()) << part.name;
      EXPECT_LT(relative(gradient.channel_squared_norms(), g.square().sum(tall ? 1 : 0)), 1e-4) << part.name;
      at::Tensor rows = at::empty({3, 8});
      gradient.dense().write(part.rows - 3, 3, rows);
      EXPECT_LT(relative(rows, g.narrow(0, part.rows - 3, 3)), 1e-5) << part.name;
    }
  }
}

// One commit of `method` from fresh state, in fp32, against the formula on dense gradients.
TEST_F(Factored, SgdIsMinusTheGradient) {
  const auto store = make_store(at::kFloat);
  const at::Tensor before = store.parameters()[0].data.clone(), table_before = store.parameters()[2].data.clone();
  GradientSet set = make_gradients(store);
  const at::Tensor g = dense(set.matrices[0], store.parameters()[0]), table = dense(set.matrices[2], store.parameters()[2]);
  Optimizer optimizer(store, {.method = Method::kSgd});
  auto proposal = optimizer.propose(std::move(set), 0.1);
  ASSERT_TRUE(proposal.ok());
  EXPECT_TRUE(at::equal(store.parameters()[0].data, before)) << "a proposal must not touch the weights";
  optimizer.commit(std::move(*proposal));
  EXPECT_LT(relative(store.parameters()[0].data, before - 0.1 * g), 1e-6);
  EXPECT_LT(relative(store.parameters()[2].data, table_before - 0.1 * table), 1e-6);
}

TEST_F(Factored, AdamWTakesTorchsStep) {
  const auto store = make_store(at::kFloat);
  at::Tensor expected = store.parameters()[0].data.clone(), m = at::zeros({16, 8}), v = at::zeros({16, 8});
  const double lr = 1e-2, decay = 0.1;
  Optimizer optimizer(store, {.method = Method::kAdamW, .weight_decay = decay});
  for (int t = 1; t <= 4; ++t) {
    GradientSet set = make_gradients(store);
    const at::Tensor g = dense(set.matrices[0], store.parameters()[0]);
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    const at::Tensor direction = (m / (1 - std::pow(0.9, t))) / ((v / (1 - std::pow(0.999, t))).sqrt() + 1e-8);
    expected = expected - lr * direction - lr * decay * expected;
    optimizer.commit(optimizer.propose(std::move(set), lr).value());
  }
  EXPECT_LT(relative(store.parameters()[0].data, expected), 1e-5);
}

class Apollo : public Fixture, public ::testing::WithParamInterface<Method> {};

// First step: bias-corrected Adam on R is sign-like, so ‖R̃‖ = sqrt(elements of R), and the update's size follows.
TEST_F(Factored, FirstApolloMiniStepHasTheSizeOfTheTheory) {
  const auto store = make_store(at::kFloat);
  const at::Tensor before = store.parameters()[0].data.clone();
  GradientSet set = make_gradients(store);
  const at::Tensor g = dense(set.matrices[0], store.parameters()[0]);
  Optimizer optimizer(store, {.method = Method::kApolloMini, .seed = 3});
  optimizer.commit(optimizer.propose(std::move(set), 1.0).value());
  for (const Part& part : store.parameters()[0].parts) {
    const int64_t a = part.rows, b = 8, m = std::min(a, b), n = std::max(a, b);
    const at::Tensor gp = g.narrow(0, part.row_begin, a);
    const at::Tensor step = before.narrow(0, part.row_begin, a) - part.data;
    at::Tensor p = at::empty({1, m});
    kernels::normal_numbers(p.data_ptr<float>(), m, 3, static_cast<uint32_t>(part.id), 0);
    const double r_norm = (a >= b ? at::mm(gp, p.t()) : at::mm(p, gp)).norm().item<double>();
    const double expected = std::sqrt(static_cast<double>(m)) * std::sqrt(static_cast<double>(n)) * gp.norm().item<double>() / r_norm;
    EXPECT_NEAR(step.norm().item<double>(), expected, 1e-4 * expected) << part.name;
    EXPECT_LT(relative(step / step.norm(), gp / gp.norm()), 1e-4) << "tensor-wise scaling keeps the direction";
  }
}

TEST_P(Apollo, DoesNotSeeTheScaleOfTheGradient) {
  const auto run = [&](double scale) {
    at::manual_seed(7);
    const auto store = make_store(at::kFloat);
    Optimizer optimizer(store, {.method = GetParam(), .rank = 2, .epsilon = 1e-30});
    for (int t = 0; t < 3; ++t) optimizer.commit(optimizer.propose(make_gradients(store, scale), 1e-2).value());
    return store.parameters()[0].data.clone();
  };
  EXPECT_LT(relative(run(1024.0), run(1.0)), 1e-5);
}

TEST_P(Apollo, TheLimiterBoundsGrowthAndSparesTheFirstStep) {
  const auto store = make_store(at::kFloat);
  const Parameter& parameter = store.parameters()[0];
  const Part& part = parameter.parts[0];
  const OptimizerConfig config{.method = GetParam(), .rank = 2};
  Moments state;
  for (int t = 0; t < 20; ++t) {
    const GradientSet set = make_gradients(store, t % 5 == 4 ? 100 : 1);
    const Factors factors = gather(set.matrices[0], parameter);
    const PartGradient gradient(factors, part);
    const ApolloStep step = next_step(gradient, state, config);
    if (t == 0) {
      EXPECT_EQ(step.limiter, 1);
    } else {
      EXPECT_LE(step.next.norm, 1.01 * state.norm * (1 + 1e-9));
    }
    EXPECT_GE(step.limiter, 1);
    state = step.next;
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, Apollo, ::testing::Values(Method::kApolloMini, Method::kApollo));

TEST_F(Factored, ProjectionsAreRefreshedAndMomentsKept) {
  const auto store = make_store(at::kFloat);
  const Parameter& parameter = store.parameters()[0];
  const GradientSet set = make_gradients(store);
  const Factors factors = gather(set.matrices[0], parameter);
  const PartGradient gradient(factors, parameter.parts[0]);
  const OptimizerConfig config{.refresh_every = 3};
  Moments state;
  std::vector<at::Tensor> fresh;  // what R adds to the moments, step by step: R itself, since G is constant
  for (int t = 0; t < 6; ++t) {
    const ApolloStep step = next_step(gradient, state, config);
    fresh.push_back((state.m.defined() ? step.next.m - 0.9 * state.m : step.next.m) * 10);
    state = step.next;
  }
  EXPECT_LT(relative(fresh[1], fresh[0]), 1e-4);
  EXPECT_LT(relative(fresh[2], fresh[0]), 1e-4);
  EXPECT_GT(relative(fresh[3], fresh[0]), 0.1);
  EXPECT_LT(relative(fresh[5], fresh[3]), 1e-4);
}

TEST_F(Factored, AZeroGradientTouchesNothingAndANonFiniteOneIsRefusedByName) {
  const auto store = make_store(at::kFloat);
  Optimizer optimizer(store, {});
  const at::Tensor before = store.parameters()[0].data.clone();
  auto nothing = optimizer.propose(make_gradients(store, 0), 1e-2);
  ASSERT_TRUE(nothing.ok());
  // Zero factors, but the table's x is not zero: dY is, so every gradient is.
  EXPECT_EQ(optimizer.commit(std::move(*nothing)).tensors.size(), 0U);
  EXPECT_EQ(optimizer.state_bytes(), 0);
  EXPECT_TRUE(at::equal(before, store.parameters()[0].data));

  GradientSet bad = make_gradients(store);
  bad.matrices[0].dy[0][0][12] = NAN;  // a column of part b
  const auto refused = optimizer.propose(std::move(bad), 1e-2);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("gradient of b"), std::string::npos) << refused.error().message;
}

TEST_F(Factored, TheSameBitsForAnyNumberOfThreads) {
  const auto run = [&](int threads) {
    at::set_num_threads(threads);
    at::manual_seed(7);
    const auto store = make_store(at::kBFloat16);
    Optimizer optimizer(store, {});
    for (int t = 0; t < 3; ++t) optimizer.commit(optimizer.propose(make_gradients(store), 1e-3).value());
    return store.parameters()[2].data.clone();
  };
  const at::Tensor one = run(1), two = run(2);
  EXPECT_TRUE(at::equal(one, two));
}

TEST_F(Factored, ReportsWhatRoundingMadeOfTheUpdate) {
  const auto store = make_store(at::kBFloat16);
  Optimizer stochastic(store, {}), nearest(store, {.rounding = kernels::Rounding::kNearest});
  const CommitReport kept = stochastic.commit(stochastic.propose(make_gradients(store), 1e-5).value());
  const CommitReport lost = nearest.commit(nearest.propose(make_gradients(store), 1e-5).value());
  EXPECT_EQ(kept.total.elements, 16 * 8 + 8 + 40 * 8);
  EXPECT_LT(lost.total.realised_dot / lost.total.intended_squared, 0.3);
  EXPECT_GT(kept.total.changed, lost.total.changed);
}

TEST_F(Factored, EmbeddingsCanBeFrozen) {
  const auto store = make_store(at::kFloat);
  const at::Tensor before = store.parameters()[2].data.clone();
  Optimizer optimizer(store, {.train_embeddings = false});
  optimizer.commit(optimizer.propose(make_gradients(store), 1e-2).value());
  EXPECT_TRUE(at::equal(before, store.parameters()[2].data));
}

TEST(OptimizerConfig, RefusesByName) {
  EXPECT_TRUE(OptimizerConfig{}.validate().ok());
  EXPECT_NE(OptimizerConfig{.rank = 0}.validate().error().message.find("rank"), std::string::npos);
  EXPECT_NE(OptimizerConfig{.beta1 = 1}.validate().error().message.find("beta1"), std::string::npos);
  EXPECT_NE(OptimizerConfig{.growth_limit = 0.5}.validate().error().message.find("growth_limit"), std::string::npos);
  EXPECT_FALSE(parse_method("adam").ok());
}

}  // namespace
}  // namespace lathe::optim
