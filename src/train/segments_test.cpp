// Frozen context: many graded turns of one conversation share one prefill, and documents packed side by side do not see
// each other. Exact equalities of mathematics, on every architecture.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "io/env.h"
#include "model/test_golden.h"
#include "train/backward.h"
#include "train/objective.h"

namespace lathe::train {
namespace {

// Sums over graded tokens, not means: they add up.
using Gradients = std::map<std::string, at::Tensor>;

class Segments : public ::testing::TestWithParam<const char*> {
 protected:
  Segments()
      : loaded_(model::load_model(io::posix_env(), std::string(LATHE_SOURCE_DIR "/tests/golden/") + GetParam(),
                                  {.dtype = at::kDouble})
                    .value()) {}

  // Token t >= 1 is graded where graded(t) says so.
  data::Example example(int64_t length, uint32_t seed, const std::function<bool(int64_t)>& graded) const {
    std::mt19937 random(seed);
    data::Example e;
    for (int64_t t = 0; t < length; ++t) {
      e.tokens.push_back(static_cast<int32_t>(random() % loaded_.model->config().vocab_size));
      e.weights.push_back(t > 0 && graded(t) ? 1.0F : 0.0F);
    }
    return e;
  }

  Gradients gradients(const std::vector<data::Example>& examples, const PassLimits& limits = {}) const {
    weights::GradientSet set(loaded_.store->parameters().size(), weights::GradientForm::kDense);
    const Batch batch = pack(examples, data::ContextMode::kFrozen);
    backward(*loaded_.model, batch, limits, set);
    Gradients out;
    for (const auto& parameter : loaded_.store->parameters()) {
      const at::Tensor& vector = set.vectors[parameter.id];
      const at::Tensor& g = vector.defined() ? vector : set.matrices[parameter.id].dense;
      if (g.defined()) out[parameter.name] = g.to(at::kDouble) * batch.total_weight;
    }
    return out;
  }

  // Every parameter has a gradient, and none is zero throughout: what is compared below is there.
  void expect_all_parameters(const Gradients& gradients) const {
    ASSERT_EQ(gradients.size(), loaded_.store->parameters().size());
    for (const auto& [name, g] : gradients) EXPECT_GT(g.norm().item<double>(), 0) << name;
  }
  void expect_sum(const Gradients& whole, const Gradients& a, const Gradients& b) const {
    expect_all_parameters(whole);
    for (const auto& [name, g] : whole) {
      const at::Tensor sum = a.at(name) + b.at(name);
      EXPECT_LT(((g - sum).norm() / sum.norm()).item<double>(), 1e-5) << name;
    }
  }
  void expect_same(const Gradients& a, const Gradients& b) const {
    expect_all_parameters(a);
    ASSERT_EQ(a.size(), b.size());
    for (const auto& [name, g] : a) EXPECT_LT(((g - b.at(name)).norm() / g.norm()).item<double>(), 1e-5) << name;
  }

  model::LoadedModel loaded_;
};

bool first(int64_t t) {
  return t >= 9 && t < 14;
}
bool second(int64_t t) {
  return t >= 70 && t < 90;
}

TEST_P(Segments, TurnsOfOneConversationAddUp) {
  const auto both = [](int64_t t) { return first(t) || second(t); };
  expect_sum(gradients({example(95, 1, both)}), gradients({example(95, 1, first)}),
             gradients({example(95, 1, second)}));
}

TEST_P(Segments, PackedDocumentsAddUp) {
  expect_sum(gradients({example(95, 1, first), example(80, 2, second)}), gradients({example(95, 1, first)}),
             gradients({example(80, 2, second)}));
}

TEST_P(Segments, HowForwardPassesAreCutChangesNothing) {
  const std::vector<data::Example> batch{example(95, 1, second), example(40, 2, first), example(75, 3, second)};
  const Gradients whole = gradients(batch);
  for (const int64_t rows : {1, 7, 64}) expect_same(whole, gradients(batch, {.chunk_rows = rows}));
}

TEST_P(Segments, KeptActivationsAreThoseThatARunAgainMakes) {
  constexpr int64_t kAll = int64_t{1} << 40;
  const std::vector<data::Example> batch{example(95, 1, second), example(40, 2, first), example(75, 3, second)};
  for (const int64_t rows : {1024, 7}) {
    expect_same(gradients(batch), gradients(batch, {.chunk_rows = rows, .kept_bytes = kAll}));
  }
  const auto all = [](int64_t) { return true; };
  expect_same(gradients({example(50, 1, all)}), gradients({example(50, 1, all)}, {.kept_bytes = kAll}));
  const auto both = [](int64_t t) { return first(t) || second(t); };  // two runs: the second has the first as its past
  expect_same(gradients({example(95, 1, both)}), gradients({example(95, 1, both)}, {.kept_bytes = kAll}));
}

INSTANTIATE_TEST_SUITE_P(Golden, Segments, ::testing::ValuesIn(model::kGoldenFamilies));

}  // namespace
}  // namespace lathe::train
