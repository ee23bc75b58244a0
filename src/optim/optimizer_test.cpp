#include "optim/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

#include "optim/apollo.h"
#include "optim/part_gradient.h"
#include "weights/test_memory.h"

namespace lathe::optim {
namespace {

using weights::GradientSet;
using weights::MatrixGradient;
using weights::Parameter;
using weights::Part;

constexpr int64_t kTile = OptimizerConfig{}.tile_elements;

// A store of one fused matrix [10 + 6, 8] and, after it, a vector [8] and a vocabulary table [40, 8].
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

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

// One APOLLO step of a part, as propose() takes it.
ApolloStep next_step(const PartGradient& gradient, const Moments& moments, const OptimizerConfig& config) {
  const int64_t a = gradient.rows().rows(), b = gradient.rows().columns();
  const auto [granularity, rank] = scaling_of(config, a, b, /*vocabulary=*/false);
  const at::Tensor p = projection(config, rank, std::min(a, b), gradient.tall(), 1, moments.updates);
  return apollo_step(gradient, gradient.squared_norms(true), p, granularity, moments, config);
}

using Factored = Fixture;

// The norms of few tokens come from T x T matrices, those of many from G tile by tile; a dense gradient is read as it
// is.
TEST_F(Factored, EveryQuantityIsThatOfTheDenseGradient) {
  const auto store = make_store(at::kFloat);
  const auto check = [&](const Parameter& parameter, const GradientSet& set, const at::Tensor& whole, bool by_gram) {
    const ParameterGradient gathered = gather(set.matrices[parameter.id], parameter);
    for (const Part& part : parameter.parts) {
      PartGradient gradient(gathered, part, /*tile_elements=*/24);
      EXPECT_EQ(gradient.by_gram(), by_gram);
      const at::Tensor g = whole.narrow(0, part.row_begin, part.rows);
      const bool tall = part.rows >= 8;
      ASSERT_EQ(gradient.tall(), tall);
      const at::Tensor p = at::randn({2, tall ? 8 : part.rows});
      for (const bool formed : {false, true}) {
        if (formed) gradient.form_in(at::empty({100 * 8}));
        EXPECT_LT(relative(gradient.project(p), tall ? at::mm(g, p.t()) : at::mm(p, g)), 1e-5) << part.name;
        const SquaredNorms norms = gradient.squared_norms(true);
        const double total = g.square().sum().item<double>();
        EXPECT_NEAR(norms.total(), total, 1e-4 * total) << part.name;
        EXPECT_LT(relative(norms.channels, g.square().sum(tall ? 1 : 0)), 1e-4) << part.name;
        const at::Tensor rows = gradient.rows().read(part.rows - 3, 3, at::empty({24}));
        EXPECT_LT(relative(rows, g.narrow(0, part.rows - 3, 3)), 1e-5) << part.name;
      }
    }
  };
  for (const weights::GradientForm form : {weights::GradientForm::kFactors, weights::GradientForm::kDense}) {
    for (const int64_t tokens : {2, 50}) {
      GradientSet set(3, form);
      for (const size_t index : {size_t{0}, size_t{2}}) {
        const Parameter& parameter = store.parameters()[index];
        const at::Tensor x = at::randn({tokens, 8}), dy = at::randn({tokens, parameter.data.size(0)});
        set.linear(parameter, x, dy);
        at::Tensor whole = at::mm(dy.t(), x);
        if (parameter.vocabulary) {
          const at::Tensor ids = at::tensor({3, 9, 3, 39}, at::kLong), dx = at::randn({4, 8});
          set.lookup(parameter, ids, dx);
          whole.index_add_(0, ids, dx);
        }
        check(parameter, set, whole, form == weights::GradientForm::kFactors && tokens == 2);
      }
    }
  }
}

TEST_F(Factored, AGradientSetKeepsTheSmallerFormIfAsked) {
  const auto store = make_store(at::kFloat);
  const Parameter& table = store.parameters()[2];  // [40, 8]: 1280 bytes, 192 of them per token as factors
  GradientSet set(3, weights::GradientForm::kSmaller), factors(3);
  for (int token = 1; token <= 8; ++token) {
    const at::Tensor x = at::randn({1, 8}), dy = at::randn({1, 40});
    for (GradientSet* s : {&set, &factors}) s->linear(table, x, dy);
    EXPECT_EQ(set.matrices[2].dense.defined(), token >= 7);
    EXPECT_EQ(set.matrices[2].x.empty(), token >= 7);
  }
  for (GradientSet* s : {&set, &factors}) s->lookup(table, at::tensor({3, 39}, at::kLong), at::ones({2, 8}));
  EXPECT_TRUE(set.matrices[2].ids.empty());
  EXPECT_LT(relative(set.matrices[2].dense, dense(factors.matrices[2], table)), 1e-6);
}

// Sums in bf16 tiles, and in fp32 over channels on either side.
TEST_F(Factored, NormsOfBf16TilesAreThoseOfTheSumInFp32) {
  weights::WeightStore store;
  store.add("wide", at::zeros({6, 40}).to(at::kBFloat16), {{"wide", 6}}, false);
  store.add("tall", at::zeros({40, 6}).to(at::kBFloat16), {{"tall", 40}}, false);
  for (const Parameter& parameter : store.parameters()) {
    GradientSet set(2);
    set.linear(parameter, at::randn({30, parameter.data.size(1)}).to(at::kBFloat16),
               at::randn({30, parameter.data.size(0)}).to(at::kBFloat16));
    const at::Tensor g = dense(set.matrices[parameter.id], parameter);
    const ParameterGradient gathered = gather(set.matrices[parameter.id], parameter);
    const PartGradient gradient(gathered, parameter.parts[0], /*tile_elements=*/80);
    ASSERT_FALSE(gradient.by_gram());
    const SquaredNorms norms = gradient.squared_norms(true);
    EXPECT_NEAR(norms.total() / g.square().sum().item<double>(), 1, 1e-3);
    EXPECT_LT(relative(norms.channels, g.square().sum(gradient.tall() ? 1 : 0)), 4e-3);
  }
}

// One commit of `method` from fresh state, in fp32, against the formula on dense gradients.
TEST_F(Factored, SgdIsMinusTheGradient) {
  const auto store = make_store(at::kFloat);
  const at::Tensor before = store.parameters()[0].data.clone(), table_before = store.parameters()[2].data.clone();
  GradientSet set = make_gradients(store);
  const at::Tensor g = dense(set.matrices[0], store.parameters()[0]),
                   table = dense(set.matrices[2], store.parameters()[2]);
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
    const double expected =
        std::sqrt(static_cast<double>(m)) * std::sqrt(static_cast<double>(n)) * gp.norm().item<double>() / r_norm;
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
  for (const double scale : {0x1p-20, 1024.0, 0x1p20}) EXPECT_LT(relative(run(scale), run(1.0)), 1e-5) << scale;
}

TEST_P(Apollo, TheLimiterBoundsGrowthAndSparesTheFirstStep) {
  const auto store = make_store(at::kFloat);
  const Parameter& parameter = store.parameters()[0];
  const Part& part = parameter.parts[0];
  const OptimizerConfig config{.method = GetParam(), .rank = 2};
  Moments state;
  for (int t = 0; t < 20; ++t) {
    const GradientSet set = make_gradients(store, t % 5 == 4 ? 100 : 1);
    const ParameterGradient factors = gather(set.matrices[0], parameter);
    const PartGradient gradient(factors, part, kTile);
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
  const ParameterGradient factors = gather(set.matrices[0], parameter);
  const PartGradient gradient(factors, parameter.parts[0], kTile);
  const OptimizerConfig config{.refresh_every = 3};
  Moments state;
  std::vector<at::Tensor> fresh;  // what R adds to the moments, step by step: R itself, since G is constant
  for (int t = 0; t < 6; ++t) {
    const ApolloStep step = next_step(gradient, state, config);
    fresh.push_back((state.m.defined() ? step.next.m - 0.9 * state.m : step.next.m) * 10);
    if (t > 0) {
      // The average of the moments as they were, at the refresh too, and this step's R; 1 - 0.999 is not what it is in
      // fp32.
      const at::Tensor r = gradient.project(projection(config, 1, 8, gradient.tall(), 1, t));
      EXPECT_LT(relative(step.next.m, (1 - 0.9) * r + 0.9 * state.m), 1e-6) << t;
      EXPECT_LT(relative(step.next.v, (1 - 0.999) * r * r + 0.999 * state.v), 1e-4) << t;
    }
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
  GradientSet infinite = make_gradients(store);
  infinite.vectors[1][3] = INFINITY;
  const auto also = optimizer.propose(std::move(infinite), 1e-2);
  ASSERT_FALSE(also.ok());
  EXPECT_NE(also.error().message.find("gradient of norm"), std::string::npos) << also.error().message;
  EXPECT_EQ(optimizer.state_bytes(), 0);
  EXPECT_TRUE(at::equal(before, store.parameters()[0].data));
}

// Three steps of bf16 weights; all of them, end to end.
class SameBits : public Fixture, public ::testing::WithParamInterface<Method> {
 protected:
  static at::Tensor run(int threads, int64_t tile_elements) {
    const int before = at::get_num_threads();
    at::set_num_threads(threads);
    at::manual_seed(7);
    const auto store = make_store(at::kBFloat16);
    Optimizer optimizer(store, {.method = GetParam(), .rank = 2, .weight_decay = 0.1, .tile_elements = tile_elements});
    for (int t = 0; t < 3; ++t) optimizer.commit(optimizer.propose(make_gradients(store), 1e-2).value());
    at::set_num_threads(before);
    std::vector<at::Tensor> all;
    for (const Parameter& parameter : store.parameters()) all.push_back(parameter.data.flatten());
    return at::cat(all);
  }
};

TEST_P(SameBits, ForAnyNumberOfThreadsAndAnyTile) {
  const at::Tensor expected = run(1, 1 << 18);
  for (const int threads : {1, 2, 3}) {
    for (const int64_t tile : {1, 40, 64, 100, 1 << 18})
      EXPECT_TRUE(at::equal(run(threads, tile), expected)) << threads << " threads, tile " << tile;
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, SameBits,
                         ::testing::Values(Method::kApolloMini, Method::kApollo, Method::kAdamW, Method::kSgd));

// Two checkpoint tensors in one fused parameter are updated as if each were a parameter of its own.
TEST_F(Factored, FusingChangesNothing) {
  for (const Method method : {Method::kApolloMini, Method::kApollo, Method::kAdamW}) {
    const at::Tensor w = at::randn({16, 8}), bias = at::randn({16});
    weights::WeightStore fused, separate;
    fused.add("w", w.clone(), {{"a", 10}, {"b", 6}}, false);
    fused.add("bias", bias.clone(), {{"a.bias", 10}, {"b.bias", 6}}, false);
    separate.add("a", w.narrow(0, 0, 10).clone(), {{"a", 10}}, false);
    separate.add("b", w.narrow(0, 10, 6).clone(), {{"b", 6}}, false);
    separate.add("a.bias", bias.narrow(0, 0, 10).clone(), {{"a.bias", 10}}, false);
    separate.add("b.bias", bias.narrow(0, 10, 6).clone(), {{"b.bias", 6}}, false);
    const OptimizerConfig config{.method = method, .rank = 2};
    Optimizer one(fused, config), other(separate, config);
    for (int t = 0; t < 3; ++t) {
      const at::Tensor x = at::randn({5, 8}), dy = at::randn({5, 16}), g = at::randn({16});
      GradientSet whole(2), parts(4);
      whole.linear(fused.parameters()[0], x, dy);
      whole.vector(fused.parameters()[1], g);
      parts.linear(separate.parameters()[0], x, dy.narrow(1, 0, 10));
      parts.linear(separate.parameters()[1], x, dy.narrow(1, 10, 6));
      parts.vector(separate.parameters()[2], g.narrow(0, 0, 10));
      parts.vector(separate.parameters()[3], g.narrow(0, 10, 6));
      one.commit(one.propose(std::move(whole), 1e-2).value());
      other.commit(other.propose(std::move(parts), 1e-2).value());
    }
    for (const char* name : {"a", "b", "a.bias", "b.bias"}) {
      EXPECT_LT(relative(fused.find_part(name)->data, separate.find_part(name)->data), 1e-6)
          << name << ", " << method_name(method);
    }
  }
}

// Tensor-wise scaling is of the tensor: two parts as one are another tensor.
TEST_F(Factored, FusingTwoPartsIntoOneDoesChangeTheirScale) {
  const at::Tensor w = at::randn({16, 8}), x = at::randn({5, 8}), dy = at::randn({5, 16});
  weights::WeightStore parts, one;
  parts.add("w", w.clone(), {{"a", 10}, {"b", 6}}, false);
  one.add("w", w.clone(), {{"w", 16}}, false);
  for (const auto* store : {&parts, &one}) {
    Optimizer optimizer(*store, {});
    GradientSet set(1);
    set.linear(store->parameters()[0], x, dy);
    optimizer.commit(optimizer.propose(std::move(set), 1e-2).value());
  }
  const at::Tensor a = parts.parameters()[0].data - w, b = one.parameters()[0].data - w;
  EXPECT_GT(relative(a, b), 0.01);
}

// The compatibility mode's other tensors: AdamW with ε added to the uncorrected root, and decay last, of the updated
// weights.
TEST_F(Factored, AdamWOfTheAuthorsHasEpsilonBesideTheUncorrectedRoot) {
  constexpr double kRate = 1e-2, kDecay = 0.1, kEpsilon = 1e-2;
  const auto store = make_store(at::kFloat);
  at::Tensor expected[] = {store.parameters()[0].data.clone(), store.parameters()[1].data.clone()};
  at::Tensor m[] = {at::zeros({16, 8}), at::zeros({8})}, v[] = {at::zeros({16, 8}), at::zeros({8})};
  Optimizer optimizer(store,
                      {.method = Method::kAdamW, .epsilon = kEpsilon, .weight_decay = kDecay, .official_compat = true});
  for (int t = 1; t <= 4; ++t) {
    GradientSet set = make_gradients(store);
    const at::Tensor g[] = {dense(set.matrices[0], store.parameters()[0]), set.vectors[1].clone()};
    const double correction = std::sqrt(1 - std::pow(0.999, t)) / (1 - std::pow(0.9, t));
    for (int i = 0; i < 2; ++i) {
      m[i] = 0.9 * m[i] + 0.1 * g[i];
      v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
      expected[i] = (expected[i] - kRate * correction * m[i] / (v[i].sqrt() + kEpsilon)) * (1 - kRate * kDecay);
    }
    optimizer.commit(optimizer.propose(std::move(set), kRate).value());
  }
  for (int i = 0; i < 2; ++i) EXPECT_LT(relative(store.parameters()[i].data, expected[i]), 1e-6) << i;
}

// W' = W - lr U - lr λ W with the W before the update, in one rounding.
TEST_F(Factored, DecayIsOfTheWeightsBeforeTheUpdateAndOfMatricesOnly) {
  constexpr double kRate = 0.1, kDecay = 0.3;
  const auto store = make_store(at::kFloat);
  const at::Tensor w = store.parameters()[0].data.clone(), norm = store.parameters()[1].data.clone();
  GradientSet set = make_gradients(store);
  const at::Tensor g = dense(set.matrices[0], store.parameters()[0]), v = set.vectors[1].clone();
  Optimizer optimizer(store, {.method = Method::kSgd, .weight_decay = kDecay});
  optimizer.commit(optimizer.propose(std::move(set), kRate).value());
  EXPECT_LT(relative(store.parameters()[0].data, w - kRate * g - kRate * kDecay * w), 1e-6);
  EXPECT_LT(relative(store.parameters()[1].data, norm - kRate * v), 1e-6);
}

TEST_F(Factored, VectorsTakeAdamsStepUnderApollo) {
  const auto store = make_store(at::kFloat);
  at::Tensor expected = store.parameters()[1].data.clone(), m = at::zeros({8}), v = at::zeros({8});
  Optimizer optimizer(store, {});
  for (int t = 1; t <= 4; ++t) {
    GradientSet set = make_gradients(store);
    const at::Tensor g = set.vectors[1];
    m = 0.9 * m + 0.1 * g, v = 0.999 * v + 0.001 * g * g;
    expected = expected - 1e-2 * (m / (1 - std::pow(0.9, t))) / ((v / (1 - std::pow(0.999, t))).sqrt() + 1e-8);
    optimizer.commit(optimizer.propose(std::move(set), 1e-2).value());
  }
  EXPECT_LT(relative(store.parameters()[1].data, expected), 1e-6);
}

// What commit() applies, tile by tile, is what apollo_step() says of the dense gradient.
TEST_F(Factored, ApolloScalesEveryChannel) {
  for (const bool tall : {true, false}) {
    const int64_t a = tall ? 24 : 8, b = tall ? 8 : 24;
    weights::WeightStore store;
    store.add("w", at::zeros({a, b}), {{"w", a}}, false);
    const Parameter& parameter = store.parameters()[0];
    GradientSet set(1);
    set.linear(parameter, at::randn({5, b}), at::randn({5, a}));
    const ParameterGradient factors = gather(set.matrices[0], parameter);
    const OptimizerConfig config{.method = Method::kApollo, .rank = 2, .tile_elements = 3 * b};
    const PartGradient gradient(factors, parameter.parts[0], kTile);
    const ApolloStep step = apollo_step(gradient, gradient.squared_norms(true), projection(config, 2, 8, tall, 0, 0),
                                        Granularity::kChannel, {}, config);
    const at::Tensor g = dense(set.matrices[0], parameter),
                     s = tall ? step.channel_scale.unsqueeze(1) : step.channel_scale.unsqueeze(0);
    Optimizer optimizer(store, config);
    const CommitReport report = optimizer.commit(optimizer.propose(std::move(set), 0.5).value());
    EXPECT_LT(relative(parameter.data, -0.5 * step.scale * s * g), 1e-6);
    ASSERT_EQ(report.tensors.size(), 1U);
    EXPECT_NEAR(report.tensors[0].update_norm, step.next.norm, 1e-4 * step.next.norm);
    EXPECT_NEAR(report.tensors[0].gradient_norm, g.norm().item<double>(), 1e-4 * g.norm().item<double>());
  }
}

TEST_F(Factored, ADroppedProposalLeavesNoTrace) {
  const auto run = [](bool drop) {
    at::manual_seed(7);
    const auto store = make_store(at::kBFloat16);
    Optimizer optimizer(store, {});
    for (int t = 0; t < 3; ++t) {
      GradientSet set = make_gradients(store), same = set;
      if (drop) {
        EXPECT_TRUE(optimizer.propose(std::move(same), 1).ok());
      }
      optimizer.commit(optimizer.propose(std::move(set), 1e-2).value());
    }
    return store.parameters()[2].data.clone();
  };
  EXPECT_TRUE(at::equal(run(true), run(false)));
}

TEST_F(Factored, AStaleProposalIsOurMistake) {
  const auto store = make_store(at::kFloat);
  Optimizer optimizer(store, {});
  Proposal first = optimizer.propose(make_gradients(store), 1e-2).value(),
           second = optimizer.propose(make_gradients(store), 1e-2).value();
  optimizer.commit(std::move(first));
  EXPECT_DEATH(optimizer.commit(std::move(second)), "after_updates");
}

TEST_F(Factored, NothingOfAWeightsSizeIsAllocated) {
  constexpr int64_t kSide = 512;
  weights::WeightStore store;
  store.add("w", at::zeros({kSide, kSide}).to(at::kBFloat16), {{"w", kSide}}, false);
  store.add("table", at::zeros({4 * kSide, kSide}).to(at::kBFloat16), {{"table", 4 * kSide}}, true);
  for (const Method method : {Method::kApolloMini, Method::kApollo, Method::kSgd}) {
    GradientSet set(2);
    set.linear(store.parameters()[0], at::randn({4, kSide}).to(at::kBFloat16), at::randn({4, kSide}).to(at::kBFloat16));
    set.linear(store.parameters()[1], at::randn({4, kSide}).to(at::kBFloat16),
               at::randn({4, 4 * kSide}).to(at::kBFloat16));
    set.lookup(store.parameters()[1], at::tensor({3, 9, 3, 39}, at::kLong), at::randn({4, kSide}).to(at::kBFloat16));
    Optimizer optimizer(store, {.method = method, .rank = 4, .tile_elements = 16 * kSide});
    const weights::MemoryWatch watch;
    optimizer.commit(optimizer.propose(std::move(set), 1e-3).value());
    EXPECT_GT(watch.largest(), 0U);
    EXPECT_LE(watch.largest(), sizeof(float) * 16 * kSide) << method_name(method);  // one tile
  }
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

// With gradients in fp32 shadow rounding is training in fp32, looked at through bf16; also where nearest loses all.
TEST_F(Factored, ShadowsTrainAsFp32Weights) {
  for (const Method method : {Method::kApolloMini, Method::kApollo, Method::kAdamW, Method::kSgd}) {
    const auto narrow = make_store(at::kBFloat16);
    weights::WeightStore wide;
    for (const Parameter& p : narrow.parameters()) {
      std::vector<std::pair<std::string, int64_t>> parts;
      for (const Part& part : p.parts) parts.emplace_back(part.name, part.rows);
      wide.add(p.name, p.data.to(at::kFloat), parts, p.vocabulary);
    }
    OptimizerConfig config{.method = method, .rank = 2, .weight_decay = 0.1};
    Optimizer exact(wide, config);
    config.rounding = kernels::Rounding::kShadow;
    Optimizer shadowed(narrow, config);
    for (int t = 0; t < 5; ++t) {
      GradientSet set = make_gradients(wide);
      for (const size_t index : {size_t{0}, size_t{2}})
        set.matrices[index] = {.dense = dense(set.matrices[index], wide.parameters()[index])};
      exact.commit(exact.propose(set, 1e-4).value());
      shadowed.commit(shadowed.propose(std::move(set), 1e-4).value());
    }
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(at::equal(narrow.parameters()[i].data, wide.parameters()[i].data.to(at::kBFloat16)))
          << method_name(method) << ", parameter " << i;
    }
    EXPECT_EQ(shadowed.state_bytes(), exact.state_bytes() + 4 * (16 * 8 + 8 + 40 * 8));
  }
}

TEST_F(Factored, ShadowsOfFp32WeightsAreRefusedByName) {
  const auto store = make_store(at::kFloat);
  const OptimizerConfig config{.rounding = kernels::Rounding::kShadow};
  const Status checked = Optimizer::check(store, config);
  ASSERT_FALSE(checked.ok());
  EXPECT_NE(checked.error().message.find("shadow rounding"), std::string::npos) << checked.error().message;
  Optimizer optimizer(store, config);
  EXPECT_FALSE(optimizer.propose(make_gradients(store), 1e-2).ok());
  EXPECT_FALSE(StreamedUpdate(optimizer, 1e-2).apply(make_gradients(store)).ok());
  EXPECT_TRUE(Optimizer::check(make_store(at::kBFloat16), config).ok());
  EXPECT_FALSE(Optimizer::check(store, {.rank = 0}).ok());
  EXPECT_EQ(parse_rounding("shadow").value(), kernels::Rounding::kShadow);
  EXPECT_FALSE(parse_rounding("up").ok());
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
