// Objectives and the walk over the head, against the same formulas on whole logits in fp64 with autograd.
#include "train/loss.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <numbers>
#include <random>

#include "io/env.h"
#include "train/backward.h"
#include "train/dpo.h"
#include "train/kl.h"

namespace lathe::train {
namespace {

constexpr const char* kModel = LATHE_SOURCE_DIR "/tests/golden/qwen3";

// Sequences of random tokens; the first `context` tokens are not graded, the others by 1, 0 or another weight.
std::vector<data::Example> random_examples(int64_t vocab, std::initializer_list<int64_t> lengths, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<data::Example> examples;
  for (const int64_t length : lengths) {
    data::Example example;
    for (int64_t t = 0; t < length; ++t) {
      example.tokens.push_back(static_cast<int32_t>(random() % vocab));
      constexpr float kWeights[] = {1, 0, 1, 0.25, 1, 3};
      example.weights.push_back(t < 3 ? 0.0F : kWeights[random() % 6]);
    }
    example.weights.back() = 1;
    examples.push_back(std::move(example));
  }
  return examples;
}

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).norm() / b.to(at::kDouble).norm()).item<double>();
}

class Loss : public ::testing::Test {
 protected:
  Loss() : loaded_(model::load_model(io::posix_env(), kModel).value()), model_(*loaded_.model) {
    at::manual_seed(5);
    examples_ = random_examples(model_.config().vocab_size, {21, 17, 30, 12}, 3);
    batch_ = pack(examples_, data::ContextMode::kFrozen);
    graded_ = graded_rows(batch_);
    x_ = forward_live(model_, batch_, 1024, false).inputs.back();
  }

  const weights::Parameter& final_norm() const { return loaded_.store->parameter("model.norm.weight"); }
  const weights::Parameter& head() const {
    return loaded_.store->parameter(model_.config().tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  }

  // log p of all graded rows [r, V] fp64 as a function of x, norm and head, whose gradients autograd then knows.
  struct Whole {
    at::Tensor x, norm, head, log_p;
  };
  Whole whole_log_p() const {
    const at::AutoGradMode with_grad(true);
    const auto leaf = [](const at::Tensor& t) { return t.detach().to(at::kDouble).requires_grad_(); };
    Whole w{.x = leaf(x_), .norm = leaf(final_norm().data), .head = leaf(head().data)};
    const at::Tensor rows = w.x.index_select(0, graded_.rows);
    const at::Tensor h = rows * (rows.square().mean(1, true) + model_.config().rms_norm_eps).rsqrt() * w.norm;
    w.log_p = at::log_softmax(at::mm(h, w.head.t()), -1);
    return w;
  }
  at::Tensor of_targets(const at::Tensor& log_p) const {
    return log_p.gather(1, graded_.targets.unsqueeze(1)).squeeze(1);
  }

  // Loss and gradients of `objective` are those of `expected`, a function of Whole's.
  void expect_gradient(const Objective& objective, const Whole& whole, const at::Tensor& expected, double divisor) {
    weights::GradientSet set(loaded_.store->parameters().size());
    const LossGradient got = loss_gradient(model_, graded_, x_, objective, divisor, set);
    EXPECT_NEAR(got.loss, expected.item<double>(), 1e-5 * std::abs(expected.item<double>()) + 1e-7);
    EXPECT_NEAR(loss_value(model_, graded_, x_, objective, divisor), got.loss, 1e-9);
    const auto gradients = torch::autograd::grad({expected}, {whole.x, whole.norm, whole.head});
    EXPECT_LT(relative(got.dx, gradients[0]), 1e-5);
    EXPECT_LT(relative(set.vectors[final_norm().id], gradients[1]), 1e-5);
    const weights::MatrixGradient& of_head = set.matrices[head().id];
    EXPECT_LT(relative(at::mm(at::cat(of_head.dy).t(), at::cat(of_head.x)), gradients[2]), 1e-5);
  }

  // References as if the model had been another: what it says of slightly different inputs.
  at::Tensor other_x() const { return x_ + 0.3 * at::randn_like(x_); }

  model::LoadedModel loaded_;
  const model::Model& model_;
  std::vector<data::Example> examples_;
  Batch batch_;
  GradedRows graded_;
  at::Tensor x_;
};

TEST_F(Loss, GradedRowsKnowTheirExample) {
  int64_t row = 0;
  for (size_t i = 0; i < examples_.size(); ++i) {
    for (size_t t = 1; t < examples_[i].tokens.size(); ++t) {
      if (examples_[i].weights[t] == 0) continue;
      ASSERT_LT(row, graded_.size());
      EXPECT_EQ(graded_.sequences[row].item<int64_t>(), static_cast<int64_t>(i));
      EXPECT_EQ(graded_.targets[row].item<int64_t>(), examples_[i].tokens[t]);
      EXPECT_EQ(graded_.weights[row].item<float>(), examples_[i].weights[t]);
      ++row;
    }
  }
  EXPECT_EQ(row, graded_.size());
}

TEST_F(Loss, SupervisedIsTheWeightedMean) {
  const Whole whole = whole_log_p();
  double total = 0;
  for (const auto& example : examples_) total += data::total_weight({&example, 1});
  const Supervised objective;
  EXPECT_NEAR(objective.size(graded_), total, 1e-6);
  const at::AutoGradMode with_grad(true);
  expect_gradient(objective, whole, -(of_targets(whole.log_p) * graded_.weights).sum() / total, total);
}

TEST_F(Loss, DpoIsTheFormulaOfThePaper) {
  const at::Tensor reference =
      answer_log_probabilities(graded_, target_log_probabilities(model_, graded_, other_x()), 4);
  const auto* begin = reference.const_data_ptr<double>();
  for (const double beta : {0.1, 2.0}) {
    const Whole whole = whole_log_p();
    const at::AutoGradMode with_grad(true);
    std::vector<at::Tensor> gain;
    for (int64_t i = 0; i < 4; ++i) {
      const at::Tensor own = graded_.sequences.eq(i);
      gain.push_back((of_targets(whole.log_p) * graded_.weights * own).sum() - begin[i]);
    }
    const at::Tensor loss =
        -(at::log_sigmoid(beta * (gain[0] - gain[1])) + at::log_sigmoid(beta * (gain[2] - gain[3]))) / 2;
    const Dpo objective(beta, {begin, begin + 4});
    EXPECT_EQ(objective.size(graded_), 2);
    expect_gradient(objective, whole, loss, 2);
  }
}

TEST_F(Loss, DpoStartsAtLog2AndRaisesTheChosenAnswer) {
  const at::Tensor log_p = target_log_probabilities(model_, graded_, x_);
  const at::Tensor reference = answer_log_probabilities(graded_, log_p, 4);
  const auto* begin = reference.const_data_ptr<double>();
  const Dpo objective(0.5, {begin, begin + 4});
  const RowTerms terms = objective.row_terms({graded_, 0, graded_.size(), 0.5}, log_p);
  EXPECT_NEAR(terms.loss, std::numbers::ln2, 1e-12);
  // Less loss with more log p of the chosen answers (examples 0 and 2), and with less of the rejected ones.
  const at::Tensor chosen = graded_.sequences.remainder(2).eq(0);
  EXPECT_TRUE(terms.slopes.lt(0).equal(chosen));
  EXPECT_TRUE(terms.slopes.gt(0).equal(chosen.logical_not()));
}

// Through the whole model: the loss falls along the gradient as fast as its norm says.
TEST_F(Loss, DpoGradientOfTheWholeModelIsThatOfFiniteDifferences) {
  const Dpo objective(0.5, {-50, -60, -70, -40});
  weights::GradientSet set(loaded_.store->parameters().size());
  // Exact: context that is constant to the gradient is not constant to a finite difference.
  const Batch batch = pack(examples_, data::ContextMode::kExact);
  const GradedRows graded = graded_rows(batch);
  backward(model_, batch, {}, set, objective);
  std::vector<std::pair<at::Tensor, at::Tensor>> directions;  // weight, its gradient
  double squared = 0;
  for (const auto& parameter : loaded_.store->parameters()) {
    at::Tensor g = at::zeros(parameter.data.sizes());
    const auto& matrix = set.matrices[parameter.id];
    for (size_t i = 0; i < matrix.x.size(); ++i) g += at::mm(matrix.dy[i].t(), matrix.x[i]);
    for (size_t i = 0; i < matrix.ids.size(); ++i) g.index_add_(0, matrix.ids[i], matrix.dx[i]);
    if (set.vectors[parameter.id].defined()) g += set.vectors[parameter.id];
    squared += g.square().sum(at::kDouble).item<double>();
    directions.emplace_back(parameter.data, g);
  }
  const auto loss_at = [&](double step) {
    for (const auto& [weight, g] : directions) weight.add_(g, step / std::sqrt(squared));
    const at::Tensor x = forward_live(model_, batch, 1024, false).inputs.back();
    const double loss = loss_value(model_, graded, x, objective, objective.size(graded));
    for (const auto& [weight, g] : directions) weight.sub_(g, step / std::sqrt(squared));
    return loss;
  };
  const double step = 1e-3;
  EXPECT_NEAR((loss_at(step) - loss_at(-step)) / (2 * step) / std::sqrt(squared), 1, 0.01);
}

TEST_F(Loss, KlIsThatOfTheStoredEvents) {
  const int64_t vocab = model_.config().vocab_size;
  const at::Tensor other = other_x();
  for (const int64_t k : {int64_t{1}, int64_t{5}, vocab - 1, vocab}) {
    const ReferenceDistributions references = take_references(model_, graded_, other, k);
    const Whole whole = whole_log_p();
    const at::AutoGradMode with_grad(true);
    const at::Tensor tokens = references.tokens.to(at::kLong), log_q = references.log_q.to(at::kDouble);
    const at::Tensor inside = whole.log_p.gather(1, tokens);
    at::Tensor kl = (log_q.exp() * (log_q - inside)).sum(1);
    if (k < vocab) {
      const at::Tensor log_rest = references.log_rest.to(at::kDouble);
      kl = kl + log_rest.exp() * (log_rest - at::logsumexp(whole.log_p.scatter(1, tokens, -INFINITY), 1));
    }
    const double divisor = kSupervised.size(graded_);
    const at::Tensor loss = ((0.7 * kl - of_targets(whole.log_p)) * graded_.weights).sum() / divisor;
    SCOPED_TRACE(k);
    expect_gradient(WithKl(kSupervised, 0.7, references), whole, loss, divisor);
  }
}

TEST_F(Loss, KlOfTheWholeVocabularyIsExactAndOthersStayBelow) {
  const int64_t vocab = model_.config().vocab_size;
  const at::Tensor other = other_x();
  std::vector<at::Tensor> slices;
  visit_distributions(model_, graded_, other, 1, [&](const RowRange&, const at::Tensor& p) { slices.push_back(p); });
  const at::Tensor log_q = at::cat(slices).to(at::kDouble), log_p = whole_log_p().log_p.detach();
  const double exact = ((log_q.exp() * (log_q - log_p)).sum(1) * graded_.weights).sum().item<double>();
  ASSERT_GT(exact, 0.01);
  double last = 0;
  for (const int64_t k : {int64_t{1}, int64_t{4}, int64_t{32}, vocab}) {
    const WithKl objective(kSupervised, 1, take_references(model_, graded_, other, k));
    const double kl = loss_value(model_, graded_, x_, objective, 1) - loss_value(model_, graded_, x_, kSupervised, 1);
    EXPECT_LE(kl, exact * (1 + 1e-4)) << k;
    EXPECT_GT(kl, last) << k;
    last = kl;
  }
  EXPECT_NEAR(last, exact, 1e-4 * exact);
}

TEST_F(Loss, KlAndItsGradientVanishAtTheReference) {
  const int64_t vocab = model_.config().vocab_size;
  for (const int64_t k : {int64_t{3}, vocab}) {
    const WithKl objective(kSupervised, 1, take_references(model_, graded_, x_, k));
    visit_distributions(model_, graded_, x_, 1, [&](const RowRange& range, const at::Tensor& log_p) {
      at::Tensor dlogits = at::zeros_like(log_p);
      EXPECT_NEAR(objective.distribution_terms(range, log_p, &dlogits), 0, 1e-5);
      EXPECT_EQ(dlogits.abs().max().item<float>(), 0) << "k = " << k;
    });
  }
}

TEST_F(Loss, ReferencesOfExamplesMakeThoseOfTheirBatch) {
  const ReferenceDistributions all = take_references(model_, graded_, x_, 4);
  const auto parts = split(all, graded_, 4);
  ASSERT_EQ(parts.size(), 4U);
  const ReferenceDistributions joined = join(parts);
  EXPECT_TRUE(joined.tokens.equal(all.tokens) && joined.log_q.equal(all.log_q) && joined.log_rest.equal(all.log_rest));
  EXPECT_EQ(parts[1].tokens.size(0), graded_.sequences.eq(1).sum().item<int64_t>());
}

// torch's allocator of CPU memory, watched: how much was in use at once.
class Watch final : public at::Allocator {
 public:
  Watch() : inner_(at::GetCPUAllocator()) { c10::SetCPUAllocator(this, 100); }
  ~Watch() override { c10::SetCPUAllocator(inner_, 100); }
  at::DataPtr allocate(size_t n) override {
    const int64_t now = in_use_ += static_cast<int64_t>(n);
    int64_t seen = peak_.load();
    while (now > seen && !peak_.compare_exchange_weak(seen, now)) {
    }
    struct Block {
      Watch* watch;
      size_t size;
      at::DataPtr data;
    };
    auto* block = new Block{this, n, inner_->allocate(n)};
    void* data = block->data.get();
    return {data, block,
            [](void* context) {
              auto* own = static_cast<Block*>(context);
              own->watch->in_use_ -= static_cast<int64_t>(own->size);
              delete own;
            },
            at::kCPU};
  }
  at::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t n) const override { inner_->copy_data(to, from, n); }
  int64_t peak() const { return peak_; }

 private:
  at::Allocator* inner_;
  std::atomic<int64_t> in_use_ = 0, peak_ = 0;
};

class Discard final : public weights::GradientSink {
 public:
  void linear(const weights::Parameter&, at::Tensor, at::Tensor) override {}
  void lookup(const weights::Parameter&, at::Tensor, at::Tensor) override {}
  void vector(const weights::Parameter&, at::Tensor) override {}
};

// A head of any size, and rows for it: those of example 1, then those of example 0.
class Head : public ::testing::Test {
 protected:
  static constexpr int64_t kHidden = 8;

  void make(int64_t vocab, int64_t rows) {
    at::manual_seed(9);
    model::ModelConfig config = model::load_model(io::posix_env(), kModel).value().model->config();
    config.vocab_size = vocab;
    config.hidden_size = kHidden;
    config.layers = 0;
    config.tie_embeddings = true;
    store_.add("model.embed_tokens.weight", at::randn({vocab, kHidden}), {{"embed", vocab}}, true);
    store_.add("model.norm.weight", at::ones({kHidden}), {{"norm", kHidden}}, false);
    model_ = std::make_unique<model::Model>(config, store_);
    graded_ = {.rows = at::arange(rows),
               .targets = at::randint(vocab, {rows}, at::kLong),
               .weights = at::ones({rows}),
               .sequences = at::arange(rows).lt(rows / 3).to(at::kLong)};
    x_ = at::randn({rows, kHidden});
  }

  weights::WeightStore store_;
  std::unique_ptr<model::Model> model_;
  GradedRows graded_;
  at::Tensor x_;
};

TEST_F(Head, RowsThatDependOnEachOtherMayBeInDifferentSlices) {
  make(200'000, 100);  // slices of 41 rows
  const Dpo objective(0.01, {-200, -900});
  Discard sink;
  const LossGradient got = loss_gradient(*model_, graded_, x_, objective, 1, sink);

  const at::AutoGradMode with_grad(true);
  const at::Tensor x = x_.detach().requires_grad_();
  const at::Tensor h = x * (x.square().mean(1, true) + model_->config().rms_norm_eps).rsqrt();
  const at::Tensor logits = at::mm(h, store_.parameter("model.embed_tokens.weight").data.t());
  const at::Tensor log_p = logits.gather(1, graded_.targets.unsqueeze(1)).squeeze(1) - at::logsumexp(logits, 1);
  const at::Tensor rejected = graded_.sequences.eq(1);
  const at::Tensor margin = 0.01 * ((log_p * rejected.logical_not()).sum() + 200 - (log_p * rejected).sum() - 900);
  const at::Tensor loss = -at::log_sigmoid(margin);
  EXPECT_NEAR(got.loss, loss.item<double>(), 1e-4);
  EXPECT_LT(relative(got.dx, torch::autograd::grad({loss}, {x})[0]), 1e-3);
}

TEST_F(Head, LogitsAreNeverWhole) {
  constexpr int64_t kVocab = 16384, kRows = 4608;
  make(kVocab, kRows);
  const ReferenceDistributions references{at::zeros({kRows, 1}, at::kInt), at::full({kRows, 1}, -1.0),
                                          at::full({kRows}, -1.0)};
  const Dpo dpo(0.1, {0, 0});
  const WithKl objective(dpo, 0.1, references);  // all that an objective may ask of the walk
  Discard sink;
  const Watch watch;
  loss_gradient(*model_, graded_, x_, objective, 1, sink);
  EXPECT_LT(watch.peak(), int64_t{260} << 20) << "the logits as a whole have " << (kRows * kVocab * 4 >> 20) << " MiB";
  EXPECT_GT(watch.peak(), int64_t{60} << 20) << "the watch saw nothing";
}

}  // namespace
}  // namespace lathe::train
