// The compatibility mode on small vectors worked out in fp64 from the paper and the authors' order of operations. Whole
// trajectories of their package are replayed by `parity` (apps/parity/apollo_case.h).
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "optim/apollo.h"
#include "optim/optimizer.h"

namespace lathe::optim {
namespace {

// A dense gradient as factors: G = (Gᵀ)ᵀ I.
void add_dense(weights::GradientSet& set, const weights::Parameter& parameter, const at::Tensor& g) {
  set.linear(parameter, at::eye(g.size(1)), g.t().contiguous());
}

// Published hyper-parameters, a 3 x 2 weight and a given P; the numbers were computed in fp64 from the formulas.
class Vectors : public ::testing::Test {
 protected:
  struct Result {
    at::Tensor w;
    std::vector<ApolloStep> steps;
  };

  // W after one step per gradient; P is not refreshed. `transposed` runs the same problem on its side.
  static Result run(const std::vector<at::Tensor>& gradients, const at::Tensor& p, Granularity granularity,
                    double scale, bool transposed = false) {
    const OptimizerConfig config{.epsilon = 1e-6, .scale = scale, .official_compat = true};
    Result result{.w = at::tensor({.5F, -.25F, .125F, 1.F, -.75F, .375F}).view({3, 2})};
    weights::WeightStore store;
    store.add("w", transposed ? result.w.t().contiguous() : result.w.clone(), {{"w", transposed ? 2 : 3}}, false);
    const auto& parameter = store.parameters()[0];
    Moments moments;
    for (const at::Tensor& g : gradients) {
      weights::GradientSet set(1);
      add_dense(set, parameter, transposed ? g.t() : g);
      const ParameterGradient factors = gather(set.matrices[0], parameter);
      const PartGradient gradient(factors, parameter.parts[0], config.tile_elements);
      const ApolloStep step = apollo_step(gradient, gradient.squared_norms(true), p, granularity, moments, config);
      at::Tensor u = step.scale * g;
      if (step.channel_scale.defined()) u = u * step.channel_scale.unsqueeze(1);
      result.w = result.w - 0.01 * u;
      result.steps.push_back(step);
      moments = step.next;
    }
    return result;
  }

  static void expect_close(const at::Tensor& actual, const std::vector<double>& expected) {
    const at::Tensor e = at::tensor(expected, at::kDouble).view(actual.sizes());
    EXPECT_LT((actual - e).abs().max().item<double>(), 1e-6) << actual;
  }

  const at::Tensor g1 = at::tensor({.1F, -.2F, .3F, .05F, -.4F, .25F}).view({3, 2});
  const at::Tensor g2 = at::tensor({.9F, .3F, -.6F, 1.2F, .5F, -.7F}).view({3, 2});
  const at::Tensor g3 = at::tensor({-.02F, .01F, .03F, .04F, .05F, -.06F}).view({3, 2});
  const at::Tensor row = at::tensor({.5F, -1.25F}).view({1, 2});
  const std::vector<double> mini = {.430220197694, -.212645913360, .036294205479,
                                    .871976794981, -.697074936428, .392761233760};
};

TEST_F(Vectors, TensorWise) {
  expect_close(run({g1}, row, Granularity::kTensor, 128).w,
               {.467360052756, -.184720105511, .027080158267, .983680026378, -.619440211022, .293400131889});
  const Result all = run({g1, g2, g3}, row, Granularity::kTensor, 128);
  expect_close(all.w, mini);
  const double norms[] = {5.511767575, 4.318901486, 3.893206625};
  for (int t = 0; t < 3; ++t) {
    EXPECT_NEAR(all.steps[t].next.norm, norms[t], 2e-6);
    EXPECT_EQ(all.steps[t].limiter, 1);
  }
}

// Through the optimizer itself, whose P cannot be given: the update is taken from a run without decay.
TEST_F(Vectors, DecayOfTheAuthorsIsOfWhatTheUpdateLeft) {
  const auto after = [&](double decay) {
    weights::WeightStore store;
    store.add("w", at::tensor({.5F, -.25F, .125F, 1.F, -.75F, .375F}).view({3, 2}), {{"w", 3}}, false);
    Optimizer optimizer(store,
                        {.rank = 1, .epsilon = 1e-6, .weight_decay = decay, .scale = 128, .official_compat = true});
    weights::GradientSet set(1);
    add_dense(set, store.parameters()[0], g1);
    optimizer.commit(optimizer.propose(std::move(set), 0.01).value());
    return store.parameters()[0].data.clone();
  };
  EXPECT_LT((after(0.1) - (1 - 0.01 * 0.1) * after(0)).abs().max().item<double>(), 1e-7);
}

TEST_F(Vectors, TensorWiseOnItsSide) {
  expect_close(run({g1, g2, g3}, row, Granularity::kTensor, 128, /*transposed=*/true).w, mini);
}

TEST_F(Vectors, ChannelWise) {
  const at::Tensor p = at::tensor({.5F, -1.25F, .75F, .25F}).view({2, 2});
  const std::vector<double> expected = {.488272704123, -.248336745469, .106916667171,
                                        .987351161658, -.743496688139, .373304775342};
  for (const bool transposed : {false, true}) {
    const Result all = run({g1, g2, g3}, p, Granularity::kChannel, 1, transposed);
    expect_close(all.w, expected);
    const double scales[] = {14.845462521, 17.664675771, 7.916528866};
    for (int j = 0; j < 3; ++j) EXPECT_NEAR(all.steps[0].channel_scale[j].item<double>(), scales[j], 1e-5);
    EXPECT_NEAR(all.steps[0].next.norm, 7.336726254, 1e-5);
  }
}

TEST_F(Vectors, ARepeatedGradientRunsIntoTheLimiter) {
  const Result all = run({g1, g1, g1, g1, g1}, row, Granularity::kTensor, 128);
  const double limiters[] = {1, 1.330602136, 1.534671404, 1.670328985, 1.761856572};
  const double norms[] = {5.511767575, 5.566885260, 5.622554123, 5.678779674, 5.735567481};
  for (int t = 0; t < 5; ++t) {
    EXPECT_NEAR(all.steps[t].limiter, limiters[t], 1e-5);
    EXPECT_NEAR(all.steps[t].next.norm, norms[t], 1e-5);
  }
  expect_close(all.w, {.3834882031, -.0169764063, -.2245353906, .9417441016, -.2839528125, .0837205078});
}

}  // namespace
}  // namespace lathe::optim
