// Properties of APOLLO's scaling that follow from its mathematics (docs/research/apollo.md), on single matrices in
// fp32.
#include "optim/apollo.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <optional>

namespace lathe::optim {
namespace {

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

// A dense gradient, with what PartGradient needs around it.
class Dense {
 public:
  explicit Dense(const at::Tensor& g) : parameter_{.data = g} {
    parameter_.parts = {{.name = "g", .rows = g.size(0), .data = g}};
    whole_ = gather({.dense = g}, parameter_);
  }
  PartGradient gradient() const { return {whole_, parameter_.parts[0], OptimizerConfig{}.tile_elements}; }

  // What multiplies the learning rate.
  at::Tensor update(const ApolloStep& step) const {
    const at::Tensor& g = parameter_.data;
    const at::Tensor& s = step.channel_scale;
    if (!s.defined()) return step.scale * g;
    return step.scale * g * (g.size(0) >= g.size(1) ? s.unsqueeze(1) : s.unsqueeze(0));
  }

 private:
  weights::Parameter parameter_;
  ParameterGradient whole_;
};

struct Taken {
  ApolloStep step;
  at::Tensor update;
};

Taken take(const at::Tensor& g, const at::Tensor& p, Granularity granularity, const Moments& moments,
           const OptimizerConfig& config) {
  const Dense dense(g);
  ApolloStep step =
      apollo_step(dense.gradient(), dense.gradient().squared_norms(true), p, granularity, moments, config);
  const at::Tensor update = dense.update(step);
  return {std::move(step), update};
}

at::Tensor random_projection(int64_t rank, int64_t m) {
  return projection({.seed = 11}, rank, m, true, 0, 0);
}

struct Case {
  Granularity granularity;
  int64_t a, b;
};

class ApolloScaling : public ::testing::TestWithParam<Case> {
 protected:
  ApolloScaling() { at::manual_seed(3); }
  static int64_t larger() { return std::max(GetParam().a, GetParam().b); }
  static int64_t smaller() { return std::min(GetParam().a, GetParam().b); }
  static bool channels() { return GetParam().granularity == Granularity::kChannel; }
  static at::Tensor gradient() { return at::randn({GetParam().a, GetParam().b}); }
  static Taken take_first(const at::Tensor& g, const at::Tensor& p, const OptimizerConfig& config = {}) {
    return take(g, p, GetParam().granularity, {}, config);
  }
};

TEST_P(ApolloScaling, CompressesTheSmallerSide) {
  const Taken taken = take_first(gradient(), random_projection(2, smaller()));
  const bool tall = GetParam().a >= GetParam().b;
  EXPECT_EQ(taken.step.next.m.sizes(),
            (tall ? std::vector<int64_t>{GetParam().a, 2} : std::vector<int64_t>{2, GetParam().b}));
  ASSERT_EQ(taken.step.channel_scale.defined(), channels());
  if (channels()) {
    EXPECT_EQ(taken.step.channel_scale.sizes(), (std::vector<int64_t>{larger()}));
  }
}

TEST_P(ApolloScaling, WithoutProjectionIsTheNormOfAdamsStep) {
  const OptimizerConfig config{.scale = 1, .growth_limit = 0};
  Moments moments;
  at::Tensor m = at::zeros({GetParam().a, GetParam().b}), v = at::zeros_like(m);
  for (int t = 1; t <= 5; ++t) {
    const at::Tensor g = gradient();
    const Taken taken = take(g, at::eye(smaller()), GetParam().granularity, moments, config);
    m = 0.9 * m + 0.1 * g, v = 0.999 * v + 0.001 * g * g;
    const at::Tensor adam = (m / (1 - std::pow(0.9, t))) / ((v / (1 - std::pow(0.999, t))).sqrt() + 1e-8);
    const int64_t along = GetParam().a >= GetParam().b ? 1 : 0;
    if (channels()) {
      EXPECT_LT(relative(taken.update.norm(2, along), adam.norm(2, along)), 1e-5);
    } else {
      EXPECT_LT(relative(taken.update.norm(), adam.norm()), 1e-5);
    }
    moments = taken.step.next;
  }
}

// A projection that keeps lengths (PᵀP = I) leaves of Adam's first step its length, √m for each line of the smaller
// side.
TEST_P(ApolloScaling, OfAnOrthogonalProjectionIsThatOfNone) {
  const at::Tensor q = std::get<0>(at::linalg_qr(at::randn({smaller(), smaller()})));
  const Taken taken = take_first(gradient(), q);
  const int64_t along = GetParam().a >= GetParam().b ? 1 : 0;
  const double m = static_cast<double>(smaller()), n = static_cast<double>(larger());
  if (channels()) {
    EXPECT_LT(relative(taken.update.norm(2, along), at::full({larger()}, std::sqrt(m))), 1e-5);
  } else {
    EXPECT_NEAR(taken.update.norm().item<double>(), std::sqrt(m * n), 1e-4 * std::sqrt(m * n));
  }
}

// A learning rate is AdamW's: the first update's root mean square is κ = √(scale r / m), 1 by default, where AdamW's
// is 1.
TEST_P(ApolloScaling, TheLearningRateMeansWhatItMeansForAdamW) {
  const double m = static_cast<double>(smaller());
  for (const int64_t rank : {1, 4, 8}) {
    for (const std::optional<double> scale : {std::optional<double>(), std::optional<double>(128)}) {
      const double kappa = std::sqrt(scale.value_or(m / static_cast<double>(rank)) * static_cast<double>(rank) / m);
      double square = 0;
      constexpr int kDraws = 40;
      for (int draw = 0; draw < kDraws; ++draw) {
        const at::Tensor p = at::randn({rank, smaller()}) / std::sqrt(static_cast<double>(rank));
        square += take_first(gradient(), p, {.scale = scale}).update.square().mean().item<double>() / kDraws;
      }
      if (channels()) {
        // E ‖G_j‖² / ‖R_j‖² is that of the inverse of a χ² of `rank` degrees: r / (r - 2), infinite for one or two.
        if (rank < 8) continue;
        EXPECT_NEAR(std::sqrt(square) / kappa, std::sqrt(8.0 / 6.0), 0.15) << rank;
      } else {
        EXPECT_NEAR(std::sqrt(square) / kappa, 1, 0.25) << "rank " << rank << ", kappa " << kappa;
      }
    }
  }
}

// Bias-corrected Adam's first step is a matrix of signs, so ‖R̃_j‖ = √r.
TEST_P(ApolloScaling, FirstStepHasTheSizeOfTheTheory) {
  const at::Tensor g = gradient(), p = random_projection(2, smaller());
  const bool tall = GetParam().a >= GetParam().b;
  const int64_t along = tall ? 1 : 0;
  const at::Tensor r = tall ? at::mm(g, p.t()) : at::mm(p, g);
  const double alpha = std::sqrt(static_cast<double>(smaller()) / 2);
  const Taken taken = take_first(g, p);
  const at::Tensor expected = channels() ? alpha * std::sqrt(2.0) * g.norm(2, along) / r.norm(2, along)
                                         : alpha * std::sqrt(2.0 * static_cast<double>(larger())) * g.norm() / r.norm();
  EXPECT_LT(relative(channels() ? taken.update.norm(2, along) : taken.update.norm(), expected), 1e-5);
}

TEST_P(ApolloScaling, KeepsTheDirectionOfEachChannel) {
  const at::Tensor g = gradient();
  const at::Tensor ratio = take_first(g, random_projection(2, smaller())).update / g;
  EXPECT_GT(ratio.min().item<double>(), 0);
  const at::Tensor lines = !channels()                    ? ratio.flatten().unsqueeze(0)
                           : GetParam().a >= GetParam().b ? ratio
                                                          : ratio.t();
  EXPECT_LT(((lines.amax(1) - lines.amin(1)) / lines.amax(1)).max().item<double>(), 1e-4);
}

TEST_P(ApolloScaling, AFourfoldScaleDoublesTheUpdate) {
  const at::Tensor g = gradient(), p = random_projection(2, smaller());
  EXPECT_LT(relative(take_first(g, p, {.scale = 4}).update, 2 * take_first(g, p, {.scale = 1}).update), 1e-6);
}

TEST_P(ApolloScaling, OfTheTransposeIsTheTranspose) {
  if (GetParam().a == GetParam().b) GTEST_SKIP() << "a square matrix is always projected from the right";
  const at::Tensor g = gradient(), p = random_projection(2, smaller());
  EXPECT_LT(relative(take_first(g.t().contiguous(), p).update, take_first(g, p).update.t()), 1e-5);
}

TEST_P(ApolloScaling, OfPermutedChannelsIsPermuted) {
  const at::Tensor g = gradient(), p = random_projection(2, smaller()), order = at::randperm(larger());
  const int64_t along = GetParam().a >= GetParam().b ? 0 : 1;
  const at::Tensor permuted = take_first(g.index_select(along, order), p).update;
  EXPECT_LT(relative(permuted, take_first(g, p).update.index_select(along, order)), 1e-5);
}

TEST_P(ApolloScaling, ARepeatedGradientKeepsItsStep) {
  const at::Tensor g = gradient(), p = random_projection(2, smaller());
  Moments moments;
  const at::Tensor first = take_first(g, p).update;
  for (int t = 0; t < 60; ++t) {
    const Taken taken = take(g, p, GetParam().granularity, moments, {});
    ASSERT_LT(relative(taken.update, first), 1e-3) << "step " << t;
    moments = taken.step.next;
  }
}

// After a norm drops k-fold, growth of 1 % a step takes ln k / ln 1.01 steps: 70 for a half, 232 for a tenth.
TEST_P(ApolloScaling, TheLimiterRecoversAtItsRate) {
  const at::Tensor g = gradient(), p = random_projection(2, smaller());
  for (const auto& [drop, expected] : {std::pair(2, 70), std::pair(10, 232)}) {
    Moments moments = take_first(g, p).step.next;
    const double full = moments.norm;
    moments.norm /= drop;
    int steps = 0;
    for (; steps < 300 && moments.norm < full * (1 - 1e-3); ++steps) {
      const Taken taken = take(g, p, GetParam().granularity, moments, {});
      EXPECT_NEAR(taken.update.norm().item<double>(), taken.step.next.norm, 1e-4 * taken.step.next.norm);
      moments = taken.step.next;
    }
    EXPECT_EQ(steps, expected);
  }
}

// One factor for the whole tensor; and an update that may grow as it does is not touched at all.
TEST_P(ApolloScaling, TheLimiterChangesTheLengthAlone) {
  const at::Tensor g = gradient(), p = random_projection(2, smaller());
  Moments moments = take_first(g, p).step.next;
  const at::Tensor next = gradient(), free = take(next, p, GetParam().granularity, moments, {.growth_limit = 0}).update;
  for (const bool compat : {false, true}) {
    moments.norm = 0.1 * free.norm().item<double>();
    const OptimizerConfig config{.scale = 1, .official_compat = compat},
        without{.scale = 1, .growth_limit = 0, .official_compat = compat};
    const Taken limited = take(next, p, GetParam().granularity, moments, config),
                unlimited = take(next, p, GetParam().granularity, moments, without);
    EXPECT_GT(limited.step.limiter, 1);
    EXPECT_LT(relative(limited.step.limiter * limited.update, unlimited.update), 1e-6);
    if (compat) {
      EXPECT_LE(limited.step.next.norm, 1.01 * (moments.norm + 1e-8) * (1 + 1e-12));
    }
    moments.norm = 1e6;
    const Taken below = take(next, p, GetParam().granularity, moments, config);
    EXPECT_EQ(below.step.limiter, 1);
    EXPECT_TRUE(at::equal(below.update, unlimited.update));
  }
}

// The authors limit what is not yet corrected for bias, and so hold a repeated gradient back for 43 steps. Ours does
// not (ARepeatedGradientKeepsItsStep).
TEST_P(ApolloScaling, OfTheAuthorsHoldsARepeatedGradientBack) {
  const at::Tensor g = gradient(), p = random_projection(2, smaller());
  const OptimizerConfig config{.epsilon = 1e-12, .scale = 1, .official_compat = true};
  Moments moments;
  std::vector<double> length;
  for (int t = 1; t <= 60; ++t) {
    const Taken taken = take(g, p, GetParam().granularity, moments, config);
    length.push_back(taken.update.norm().item<double>());
    moments = taken.step.next;
  }
  for (const auto& [t, expected] :
       {std::pair(1, 1.0), std::pair(2, .752), std::pair(3, .652), std::pair(5, .568), std::pair(9, .529),
        std::pair(10, .530), std::pair(20, .612), std::pair(30, .758)}) {
    EXPECT_NEAR(length[t - 1] / length[0], expected, 1e-3) << t;
  }
  EXPECT_LT(length[42] / length[0], 0.9999);
  for (int t = 44; t <= 60; ++t) EXPECT_NEAR(length[t - 1] / length[0], 1, 1e-4) << t;
}

// Bias correction of the authors is one scalar per step, after everything else.
TEST_P(ApolloScaling, OfTheAuthorsCorrectsForBiasByOneScalar) {
  const at::Tensor p = random_projection(2, smaller());
  const OptimizerConfig config{.epsilon = 1e-6, .scale = 1, .growth_limit = 0, .official_compat = true};
  Moments moments;
  for (int t = 1; t <= 4; ++t) {
    const at::Tensor g = gradient();
    const bool tall = GetParam().a >= GetParam().b;
    const at::Tensor r = tall ? at::mm(g, p.t()) : at::mm(p, g);
    const Taken taken = take(g, p, GetParam().granularity, moments, config);
    moments = taken.step.next;
    const at::Tensor adam = moments.m / (moments.v.sqrt() + 1e-6);
    const int64_t along = tall ? 1 : 0;
    const at::Tensor s = channels() ? (adam.norm(2, along) / (r.norm(2, along) + 1e-8)).unsqueeze(along)
                                    : adam.norm() / (r.norm() + 1e-8);
    const double scalar = std::sqrt(1 - std::pow(0.999, t)) / (1 - std::pow(0.9, t));
    EXPECT_LT(relative(taken.update, scalar * s * g), 1e-5) << t;
  }
}

// A gradient far too small to mean anything must not hold the next one back for thousands of steps.
TEST_P(ApolloScaling, TheLimiterHasAFloor) {
  const at::Tensor g = gradient(), p = random_projection(2, smaller());
  Moments moments = take_first(g, p).step.next;
  moments.norm = 1e-12;
  const double wanted = take_first(g, p).update.norm().item<double>();
  const double floor = 1e-3 * std::sqrt(static_cast<double>(g.numel()));
  int steps = 0;
  for (; steps < 2000 && moments.norm < 0.9 * wanted; ++steps)
    moments = take(g, p, GetParam().granularity, moments, {}).step.next;
  // The first step reaches the floor, the others grow by 1 %.
  EXPECT_EQ(steps, 1 + static_cast<int>(std::ceil(std::log(0.9 * wanted / floor) / std::log(1.01))));
}

INSTANTIATE_TEST_SUITE_P(Shapes, ApolloScaling,
                         ::testing::Values(Case{Granularity::kTensor, 24, 10}, Case{Granularity::kTensor, 10, 24},
                                           Case{Granularity::kTensor, 16, 16}, Case{Granularity::kChannel, 24, 10},
                                           Case{Granularity::kChannel, 10, 24}, Case{Granularity::kChannel, 16, 16}));

TEST(Projection, HasTheMomentsOfItsRank) {
  constexpr int64_t rank = 8, m = 20'000;
  const at::Tensor p = projection({}, rank, m, true, 0, 0);
  const double n = rank * m;
  EXPECT_NEAR(p.mean().item<double>(), 0, 4 / std::sqrt(rank * n));
  EXPECT_NEAR(p.square().mean().item<double>() * rank, 1, 4 * std::sqrt(2 / n));
  // Independent rows, not an orthonormal basis: ‖row‖² scatters about m / rank, and rows are not perpendicular.
  const at::Tensor gram = at::mm(p, p.t()) * (static_cast<double>(rank) / m);
  EXPECT_GT((gram - at::eye(rank)).abs().max().item<double>(), 1 / std::sqrt(static_cast<double>(m)));
  const at::Tensor first = projection({}, 1, m, true, 0, 0);
  EXPECT_NEAR(first.square().mean().item<double>(), 1, 4 * std::sqrt(2.0 / m));
  // So it keeps lengths on average: ‖P x‖² / ‖x‖² over many blocks of columns.
  const at::Tensor x = at::randn({500, 40});
  const at::Tensor projected = at::einsum("rnk,nk->nr", {p.view({rank, 500, 40}), x});
  EXPECT_NEAR((projected.square().sum(1) / x.square().sum(1)).mean().item<double>(), 1, 0.1);
}

TEST(Projection, IsAFunctionOfSeedPartAndRefreshAlone) {
  const OptimizerConfig config{.refresh_every = 5, .seed = 2};
  const auto p = [&](int64_t part, int64_t updates, uint32_t seed = 2) {
    OptimizerConfig c = config;
    c.seed = seed;
    return projection(c, 2, 64, true, part, updates);
  };
  EXPECT_TRUE(at::equal(p(3, 0), p(3, 4)));
  EXPECT_TRUE(at::equal(p(3, 5), p(3, 9)));
  for (const at::Tensor& other : {p(3, 5), p(4, 0), p(3, 0, 3)}) EXPECT_GT(relative(other, p(3, 0)), 0.5);
}

TEST(Projection, OfTheAuthorsChangesWithTheRefreshToo) {
  const OptimizerConfig config{.refresh_every = 5, .official_compat = true};
  const auto p = [&](bool tall, int64_t updates) { return projection(config, 2, 64, tall, 0, updates); };
  EXPECT_TRUE(at::equal(p(true, 0), p(true, 4)));
  EXPECT_GT(relative(p(true, 5), p(true, 0)), 0.5);
  EXPECT_GT(relative(p(true, 10), p(true, 5)), 0.5);
  EXPECT_EQ(p(false, 0).sizes(), p(true, 0).sizes());
}

// bf16 second moments cannot decay: 0.999 v rounds back to v. Ours are fp32 and follow the true average.
TEST(Moments, SecondMomentForgets) {
  const at::Tensor p = at::ones({1, 1});
  const OptimizerConfig config{.growth_limit = 0};
  Moments moments;
  const auto feed = [&](double g, int steps) {
    const Dense dense(at::full({2, 1}, g));
    for (int t = 0; t < steps; ++t)
      moments =
          apollo_step(dense.gradient(), dense.gradient().squared_norms(false), p, Granularity::kTensor, moments, config)
              .next;
  };
  feed(1, 2000);
  feed(0.1, 5000);
  const double early = (1 - std::pow(0.999, 2000)) * std::pow(0.999, 5000), late = 0.01 * (1 - std::pow(0.999, 5000));
  EXPECT_EQ(moments.v.scalar_type(), at::kFloat);
  EXPECT_NEAR(moments.v[0][0].item<double>(), early + late, 0.01 * (early + late));
  // What would have become of it in bf16.
  at::Tensor narrow = at::zeros({1}, at::kBFloat16);
  for (int t = 0; t < 7000; ++t) narrow = narrow * 0.999 + (t < 2000 ? 1 : 0.01) * 0.001;
  EXPECT_GT(narrow.item<float>(), 0.4);
}

TEST(Scaling, TheVocabularyIsScaledAsAWholeByApolloToo) {
  const OptimizerConfig apollo{.method = Method::kApollo, .rank = 8}, mini{.rank = 4};
  EXPECT_EQ(scaling_of(apollo, 32, 16, false).granularity, Granularity::kChannel);
  EXPECT_EQ(scaling_of(apollo, 32, 16, false).rank, 8);
  EXPECT_EQ(scaling_of(apollo, 32, 3, false).rank, 3);
  EXPECT_EQ(scaling_of(apollo, 32, 16, true).granularity, Granularity::kTensor);
  EXPECT_EQ(scaling_of(apollo, 32, 16, true).rank, 1);
  EXPECT_EQ(scaling_of(mini, 32, 16, true).rank, 4);
  EXPECT_EQ(scaling_of({}, 32, 16, false).rank, 1);
}

}  // namespace
}  // namespace lathe::optim
