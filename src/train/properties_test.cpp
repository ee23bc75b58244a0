// Laws of a training step, on random examples, for every architecture and objective: a batch is the sum of its
// examples, in any order, in any micro-batches, and no document sees another. In fp64, so that equal means equal.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>

#include "io/env.h"
#include "model/test_golden.h"
#include "train/backward.h"
#include "train/dpo.h"
#include "train/kl.h"
#include "train/loss.h"

namespace lathe::train {
namespace {

constexpr int64_t kPairs = 3, kExamples = 2 * kPairs;

struct Outcome {
  double loss = 0;
  std::map<std::string, at::Tensor> gradients;

  void operator+=(const Outcome& other) {
    loss += other.loss;
    for (const auto& [name, g] : other.gradients) {
      at::Tensor& sum = gradients[name];
      sum = sum.defined() ? sum + g : g;
    }
  }
};

// The architecture's folder, the objective, the context mode.
using Case = std::tuple<const char*, const char*, data::ContextMode>;

class Properties : public ::testing::TestWithParam<Case> {
 protected:
  Properties()
      : loaded_(model::load_model(io::posix_env(),
                                  std::string(LATHE_SOURCE_DIR "/tests/golden/") + std::get<0>(GetParam()),
                                  {.dtype = at::kDouble})
                    .value()) {
    for (int64_t i = 0; i < kExamples; ++i) {
      // One is longer than a chunk of the delta rule.
      examples_.push_back(random_example(i == 0 ? 75 : 4 + static_cast<int64_t>(random_() % 30)));
      log_reference_.push_back(-static_cast<double>(random_() % 200));
    }
    if (objective_name() != "kl") return;
    const Batch batch = pack(examples_, mode());
    const GradedRows graded = graded_rows(batch);
    const at::Tensor x = forward_live(model(), batch, 1024, false).inputs.back();
    references_ = split(take_references(model(), graded, x + 0.5 * at::randn_like(x), 3), graded, kExamples);
  }

  std::string objective_name() const { return std::get<1>(GetParam()); }
  data::ContextMode mode() const { return std::get<2>(GetParam()); }
  const model::Model& model() const { return *loaded_.model; }

  // Some runs of graded tokens, at least one, weights that differ.
  data::Example random_example(int64_t length) {
    data::Example example;
    bool graded = false;
    for (int64_t t = 0; t < length; ++t) {
      if (random_() % 8 == 0) graded = !graded;
      example.tokens.push_back(random_token());
      example.weights.push_back(t > 0 && graded ? static_cast<float>(1 + random_() % 3) : 0.0F);
    }
    example.weights.back() = 1;
    return example;
  }
  int32_t random_token() { return static_cast<int32_t>(random_() % model().config().vocab_size); }

  // A pair stays together, chosen before rejected; by pairs of examples for all objectives.
  static std::vector<int64_t> examples_of(std::span<const int64_t> pairs) {
    std::vector<int64_t> indices;
    for (const int64_t pair : pairs) indices.insert(indices.end(), {2 * pair, 2 * pair + 1});
    return indices;
  }

  // Sums, not means, over the examples of these pairs as one batch.
  Outcome batch_of(std::span<const int64_t> pairs, int64_t chunk_rows = 1024) const {
    std::vector<data::Example> examples;
    std::vector<double> log_reference;
    std::vector<ReferenceDistributions> references;
    for (const int64_t i : examples_of(pairs)) {
      examples.push_back(examples_[i]);
      log_reference.push_back(log_reference_[i]);
      if (!references_.empty()) references.push_back(references_[i]);
    }
    const Dpo dpo(0.02, log_reference);
    const Supervised supervised;
    if (objective_name() == "dpo") return pass(examples, dpo, chunk_rows);
    if (objective_name() == "sft") return pass(examples, supervised, chunk_rows);
    return pass(examples, WithKl(supervised, 0.8, join(references)), chunk_rows);
  }

  Outcome pass(const std::vector<data::Example>& examples, const Objective& objective, int64_t chunk_rows) const {
    weights::GradientSet set(loaded_.store->parameters().size(), weights::GradientForm::kDense);
    Outcome outcome{
        .loss = backward(model(), pack(examples, mode()), {.chunk_rows = chunk_rows}, set, objective, /*divisor=*/1)};
    for (const auto& parameter : loaded_.store->parameters()) {
      const at::Tensor& vector = set.vectors[parameter.id];
      const at::Tensor& g = vector.defined() ? vector : set.matrices[parameter.id].dense;
      if (g.defined()) outcome.gradients[parameter.name] = g.to(at::kDouble);
    }
    return outcome;
  }

  static void expect_same(const Outcome& a, const Outcome& b) {
    EXPECT_NEAR(a.loss, b.loss, 1e-5 * std::abs(b.loss));
    ASSERT_EQ(a.gradients.size(), b.gradients.size());
    for (const auto& [name, g] : b.gradients)
      EXPECT_LT(((a.gradients.at(name) - g).norm() / g.norm()).item<double>(), 1e-5) << name;
  }

  std::mt19937 random_{7};
  model::LoadedModel loaded_;
  std::vector<data::Example> examples_;
  std::vector<double> log_reference_;
  std::vector<ReferenceDistributions> references_;
};

const std::vector<int64_t> kAll = [] {
  std::vector<int64_t> all(kPairs);
  std::iota(all.begin(), all.end(), int64_t{0});
  return all;
}();

TEST_P(Properties, ABatchIsTheSumOfItsSingles) {
  Outcome sum;
  for (const int64_t pair : kAll) sum += batch_of({&pair, 1});
  expect_same(batch_of(kAll), sum);
}

TEST_P(Properties, MicroBatchesAddUpToTheBigBatch) {
  Outcome sum;
  sum += batch_of(std::span(kAll).first(1));
  sum += batch_of(std::span(kAll).subspan(1));
  expect_same(batch_of(kAll), sum);
}

TEST_P(Properties, TheOrderOfDocumentsChangesNothing) {
  const Outcome whole = batch_of(kAll);
  std::vector<int64_t> order = kAll;
  std::reverse(order.begin(), order.end());
  expect_same(batch_of(order), whole);
  std::rotate(order.begin(), order.begin() + 1, order.end());
  expect_same(batch_of(order), whole);
}

TEST_P(Properties, WhereForwardPassesAreCutChangesNothing) {
  const Outcome whole = batch_of(kAll);
  for (int i = 0; i < 3; ++i) {
    const auto rows = static_cast<int64_t>(1 + random_() % 70);
    SCOPED_TRACE(std::to_string(rows) + " rows");
    expect_same(batch_of(kAll, rows), whole);
  }
}

// Of packed documents, all but the changed one keep their log-probabilities, to the bit, and the changed one does not.
TEST_P(Properties, AChangeInOneDocumentChangesNothingInAnother) {
  if (objective_name() != "sft") GTEST_SKIP() << "the forward pass knows of no objective";
  const auto log_p_of = [&] {
    const Batch batch = pack(examples_, mode());
    const GradedRows graded = graded_rows(batch);
    const at::Tensor x = forward_live(model(), batch, 1024, false).inputs.back();
    return std::pair(graded.sequences, target_log_probabilities(model(), graded, x));
  };
  const auto [sequences, before] = log_p_of();
  for (const int64_t changed : {int64_t{0}, int64_t{2}, kExamples - 1}) {
    const data::Example original = examples_[changed];
    for (int32_t& token : examples_[changed].tokens) token = random_token();
    const at::Tensor after = log_p_of().second;
    for (int64_t i = 0; i < kExamples; ++i) {
      const at::Tensor rows = sequences.eq(i);
      const bool same = at::equal(before.masked_select(rows), after.masked_select(rows));
      EXPECT_EQ(same, i != changed) << "example " << i << " when " << changed << " changed";
    }
    examples_[changed] = original;
  }
}

std::string name_of(const ::testing::TestParamInfo<Case>& test) {
  const auto& [folder, objective, mode] = test.param;
  return std::string(folder) + "_" + objective + (mode == data::ContextMode::kExact ? "_exact" : "_frozen");
}

INSTANTIATE_TEST_SUITE_P(Golden, Properties,
                         ::testing::Combine(::testing::ValuesIn(model::kGoldenFamilies),
                                            ::testing::Values("sft", "dpo", "kl"),
                                            ::testing::Values(data::ContextMode::kFrozen, data::ContextMode::kExact)),
                         name_of);

}  // namespace
}  // namespace lathe::train
