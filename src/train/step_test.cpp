// Whole steps on small random models: the three ways of gradients agree, micro-batches add up to their batch, memory
// stays what is promised, and what is refused or broken off leaves what is promised.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <set>
#include <thread>

#include "optim/state_file.h"
#include "train/trainer.h"
#include "weights/test_memory.h"

namespace lathe::train {
namespace {

using optim::Method;
using optim::OptimizerConfig;

model::ModelConfig small_config(bool tied) {
  model::ModelConfig c{.vocab_size = 301,
                       .hidden_size = 24,
                       .intermediate_size = 40,
                       .layers = 3,
                       .heads = 4,
                       .kv_heads = 2,
                       .head_dim = 6};
  c.max_positions = 4096;
  c.tie_embeddings = tied;
  c.qkv_bias = c.qk_norm = true;
  return c;
}

// A model with random weights, and what teaches it.
struct Taught {
  Taught(const model::ModelConfig& config, at::ScalarType dtype, const OptimizerConfig& optimizer) {
    at::set_num_threads(1);  // results do not depend on it, and these models are too small for more
    at::manual_seed(5);
    for (const auto& spec : model::Model::parameter_specs(config)) {
      const std::vector<int64_t> shape = spec.held_shape();
      const at::Tensor w = shape.size() == 1 ? 1 + 0.1 * at::randn(shape) : 0.2 * at::randn(shape);
      store.add(spec.name, w.to(dtype), spec.held_parts(), spec.vocabulary);
    }
    model.emplace(config, store);
    trainer.emplace(*model, store, gate, optimizer);
  }
  at::Tensor weights() const {
    std::vector<at::Tensor> all;
    for (const auto& parameter : store.parameters()) all.push_back(parameter.data.flatten());
    return at::cat(all).clone();
  }

  weights::WeightStore store;
  weights::Gate gate;
  std::optional<model::Model> model;
  std::optional<Trainer> trainer;
};

// Conversations of different lengths and weights, with context in front and between.
std::vector<data::Example> make_examples(int64_t count) {
  std::vector<data::Example> examples;
  uint32_t state = 17;
  const auto next = [&] { return (state = state * 1664525U + 1013904223U) >> 8; };
  for (int64_t i = 0; i < count; ++i) {
    data::Example example;
    const int64_t length = 6 + 5 * i;
    for (int64_t t = 0; t < length; ++t) {
      example.tokens.push_back(static_cast<int32_t>(next() % 301));
      const bool graded = t >= 3 && t % 4 != 3;
      example.weights.push_back(graded ? 0.5F + static_cast<float>(i) : 0.0F);
    }
    examples.push_back(std::move(example));
  }
  return examples;
}

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kFloat) - b.to(at::kFloat)).norm() / b.to(at::kFloat).norm()).item<double>();
}

struct Outcome {
  at::Tensor before, weights;
  std::vector<StepReport> reports;
  optim::OptimizerState state;
  at::Tensor update() const { return weights.to(at::kFloat) - before.to(at::kFloat); }
};

Outcome take_steps(const StepOptions& options, const OptimizerConfig& optimizer, at::ScalarType dtype = at::kFloat,
                   bool tied = true, int64_t steps = 1, int64_t count = 5, size_t micro_batch = 100) {
  Taught taught(small_config(tied), dtype, optimizer);
  const auto examples = make_examples(count);
  Outcome outcome{.before = taught.weights()};
  for (int64_t i = 0; i < steps; ++i)
    outcome.reports.push_back(taught.trainer->step(micro_batches(examples, micro_batch), options).value());
  outcome.weights = taught.weights();
  outcome.state = taught.trainer->optimizer().state();
  return outcome;
}

StepOptions by(GradientPath path) {
  return {.learning_rate = 1e-2, .gradients = path};
}

// Norms and biases in fp32 beside bf16 matrices, as merges and converters leave them.
TEST(Mixed, VectorsWiderThanMatricesAreTaughtAsWhatTheyAre) {
  for (const GradientPath path : {GradientPath::kFactored, GradientPath::kStreaming, GradientPath::kDense}) {
    Taught taught(small_config(true), at::kBFloat16, {.method = Method::kAdamW, .train_embeddings = true});
    weights::WeightStore store;
    for (const auto& spec : model::Model::parameter_specs(small_config(true))) {
      const at::Tensor w = taught.store.parameter(spec.name).data;
      store.add(spec.name, w.dim() == 1 ? w.to(at::kFloat) : w.clone(), spec.held_parts(), spec.vocabulary);
    }
    weights::Gate gate;
    const model::Model model(small_config(true), store);
    Trainer trainer(model, store, gate, {.method = Method::kAdamW, .train_embeddings = true});
    const at::Tensor norm = store.parameter("model.layers.1.input_layernorm.weight").data;
    const at::Tensor bias = store.parameter("model.layers.0.self_attn.qkv_proj.bias").data;
    const at::Tensor norm_before = norm.clone(), bias_before = bias.clone();
    const auto examples = make_examples(4);
    std::vector<double> losses;
    for (int64_t i = 0; i < 4; ++i) {
      const auto report = trainer.step(micro_batches(examples, 100), by(path));
      ASSERT_TRUE(report.ok()) << report.error().message;
      losses.push_back(report->loss);
    }
    EXPECT_LT(losses.back(), 0.8 * losses.front());
    // Rounding would leave few of them changed by so little.
    EXPECT_EQ((norm - norm_before).count_nonzero().item<int64_t>(), norm.numel());
    EXPECT_EQ((bias - bias_before).count_nonzero().item<int64_t>(), bias.numel());
  }
}

constexpr Method kMethods[] = {Method::kApolloMini, Method::kApollo, Method::kAdamW, Method::kSgd};

class EveryMethod : public ::testing::TestWithParam<Method> {};
INSTANTIATE_TEST_SUITE_P(Methods, EveryMethod, ::testing::ValuesIn(kMethods));

// One step: a difference of the last digit in fp32 grows from step to step where Adam divides small numbers.
TEST_P(EveryMethod, ThreePathsLeadToOneUpdate) {
  const OptimizerConfig optimizer{.method = GetParam(), .rank = 2, .epsilon = 1e-4, .weight_decay = 0.1};
  for (const bool tied : {true, false}) {
    const Outcome dense = take_steps(by(GradientPath::kDense), optimizer, at::kFloat, tied);
    for (const GradientPath path : {GradientPath::kFactored, GradientPath::kStreaming}) {
      const Outcome other = take_steps(by(path), optimizer, at::kFloat, tied);
      EXPECT_LT(relative(other.update(), dense.update()), 1e-4);
      EXPECT_FLOAT_EQ(static_cast<float>(other.reports[0].loss), static_cast<float>(dense.reports[0].loss));
    }
  }
}

TEST_P(EveryMethod, StreamingIsFactoredToTheBit) {
  // So few tokens that the head stays in factors, and so many that other gradients are formed.
  constexpr int64_t kSteps = 2, kCount = 3;
  const OptimizerConfig optimizer{.method = GetParam(), .rank = 2, .weight_decay = 0.1};
  for (const bool tied : {true, false}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const Outcome factored = take_steps(by(GradientPath::kFactored), optimizer, dtype, tied, kSteps, kCount);
      for (const bool live : {false, true}) {
        StepOptions options = by(GradientPath::kStreaming);
        options.live = live;
        const Outcome streamed = take_steps(options, optimizer, dtype, tied, kSteps, kCount);
        EXPECT_TRUE(at::equal(streamed.weights, factored.weights)) << dtype << " tied " << tied << " live " << live;
        ASSERT_EQ(streamed.state.tensors.size(), factored.state.tensors.size());
        EXPECT_EQ(streamed.state.settings, factored.state.settings);
        for (const auto& [name, tensor] : factored.state.tensors) {
          EXPECT_TRUE(at::equal(streamed.state.tensors.at(name), tensor)) << name;
        }
        for (size_t i = 0; i < factored.reports.size(); ++i) {
          const optim::CommitReport &a = streamed.reports[i].commit, &b = factored.reports[i].commit;
          EXPECT_EQ(a.total.changed, b.total.changed);
          EXPECT_EQ(a.tensors.size(), b.tensors.size());
          EXPECT_NEAR(a.gradient_norm, b.gradient_norm, 1e-12 * b.gradient_norm);
        }
      }
    }
  }
}

TEST_P(EveryMethod, MicroBatchesAddUpToTheirBatch) {
  const OptimizerConfig optimizer{.method = GetParam(), .rank = 2, .epsilon = 1e-4};
  for (const GradientPath path : {GradientPath::kFactored, GradientPath::kDense}) {
    const Outcome whole = take_steps(by(path), optimizer);
    for (const size_t size : {1, 2, 3}) {
      const Outcome pieces = take_steps(by(path), optimizer, at::kFloat, true, 1, 5, size);
      EXPECT_LT(relative(pieces.update(), whole.update()), 1e-4) << size;
      EXPECT_NEAR(pieces.reports[0].loss, whole.reports[0].loss, 1e-5);
      EXPECT_EQ(pieces.reports[0].graded_tokens, whole.reports[0].graded_tokens);
      EXPECT_EQ(pieces.reports[0].tokens, whole.reports[0].tokens);
    }
  }
}

TEST(Step, RefusesWhatAPathCannotDo) {
  Taught taught(small_config(true), at::kFloat, {});
  const at::Tensor before = taught.weights();
  const auto examples = make_examples(4);
  StepOptions options = by(GradientPath::kStreaming);
  // Each for its own reason.
  const auto expect_refusal = [](const auto& result, const std::string& reason) {
    ASSERT_FALSE(result.ok());
    EXPECT_NE(result.error().message.find(reason), std::string::npos) << result.error().message;
  };
  expect_refusal(taught.trainer->propose(examples, options), "there is no proposal");
  expect_refusal(taught.trainer->step(micro_batches(examples, 2), options), "written once each");
  expect_refusal(taught.trainer->step(std::span<const MicroBatch>(), options), "no example to learn from");
  for (const GradientPath path : {GradientPath::kFactored, GradientPath::kStreaming, GradientPath::kDense}) {
    options = by(path);
    options.learning_rate = -1;
    expect_refusal(taught.trainer->step(examples, options), "learning rate");
  }
  EXPECT_TRUE(at::equal(taught.weights(), before));
  EXPECT_EQ(taught.trainer->optimizer().updates(), 0);
}

TEST(Step, ALossThatIsNotFiniteChangesNothing) {
  Taught taught(small_config(true), at::kFloat, {});
  taught.store.parameter("model.norm.weight").data.fill_(NAN);
  const at::Tensor before = taught.weights();
  for (const GradientPath path : {GradientPath::kFactored, GradientPath::kStreaming, GradientPath::kDense}) {
    const auto report = taught.trainer->step(make_examples(2), by(path));
    ASSERT_FALSE(report.ok());
    EXPECT_NE(report.error().message.find("loss is not finite"), std::string::npos) << report.error().message;
  }
  EXPECT_TRUE(at::equal(at::nan_to_num(taught.weights()), at::nan_to_num(before)));
}

// A closed gate of layer 0 hides enormous weights from the forward pass, and not from the backward pass.
TEST(Step, AGradientThatIsNotFiniteStopsAStreamedStepHalfWay) {
  Taught taught(small_config(true), at::kFloat, {});
  taught.store.find_part("model.layers.0.mlp.gate_proj.weight")->data.zero_();
  taught.store.find_part("model.layers.0.mlp.down_proj.weight")->data.fill_(1e38);
  const at::Tensor before = taught.weights();
  const auto examples = make_examples(3);
  for (const GradientPath path : {GradientPath::kFactored, GradientPath::kDense}) {
    const auto refused = taught.trainer->step(examples, by(path));
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.error().message.find("not finite"), std::string::npos) << refused.error().message;
  }
  EXPECT_TRUE(at::equal(taught.weights(), before));

  const StepReport report = taught.trainer->step(examples, by(GradientPath::kStreaming)).value();
  ASSERT_TRUE(report.stopped);
  EXPECT_NE(report.stopped->message.find("model.layers.0.mlp.gate_proj"), std::string::npos) << report.stopped->message;
  EXPECT_NE(report.stopped->message.find("half-way"), std::string::npos) << report.stopped->message;
  std::set<std::string_view> reported;
  for (const auto& tensor : report.commit.tensors) reported.insert(tensor.name);
  EXPECT_TRUE(reported.contains("model.layers.1.mlp.gate_proj.weight"));
  EXPECT_FALSE(reported.contains("model.embed_tokens.weight"));
  const at::Tensor after = taught.weights();
  EXPECT_TRUE(at::isfinite(after).all().item<bool>());
  int64_t begin = 0;
  for (const auto& parameter : taught.store.parameters()) {
    for (const auto& part : parameter.parts) {
      const int64_t n = part.data.numel();
      EXPECT_NE(at::equal(after.narrow(0, begin, n), before.narrow(0, begin, n)), reported.contains(part.name))
          << part.name;
      begin += n;
    }
  }
  EXPECT_EQ(taught.trainer->optimizer().updates(), 1) << "its random bits are used up";
}

struct Looks {
  int64_t count = 0;
  int64_t torn = 0;  // different sights of both ends of the model that no step left behind
};

// A reader looks at both ends of the model while streamed steps are taken, at least 30 and until `enough`.
Looks look_during_streamed_steps(bool live, const std::function<bool(const Looks&)>& enough) {
  constexpr int kMostSteps = 1000;
  Taught taught(small_config(true), at::kFloat, {.method = Method::kSgd});
  const auto first = taught.store.find_part("model.layers.0.mlp.up_proj.weight")->data,
             last = taught.store.find_part("model.layers.2.mlp.up_proj.weight")->data;
  using Sight = std::pair<float, float>;
  const auto sight = [&] { return Sight(*first.const_data_ptr<float>(), *last.const_data_ptr<float>()); };
  std::mutex mutex;  // guards seen, count
  std::set<Sight> seen, whole{sight()};
  int64_t count = 0;
  std::atomic<bool> done = false;
  std::thread reader([&] {
    while (!done) {
      const weights::Gate::Shared reading(taught.gate);
      const Sight now = sight();
      const std::lock_guard hold(mutex);
      seen.insert(now);
      ++count;
    }
  });
  const auto looks = [&]() -> Looks {
    const std::lock_guard hold(mutex);
    return {count, std::count_if(seen.begin(), seen.end(), [&](const Sight& s) { return !whole.contains(s); })};
  };
  const auto examples = make_examples(3);
  StepOptions options = by(GradientPath::kStreaming);
  options.live = live;
  for (int i = 0; i < kMostSteps && (i < 30 || !enough(looks())); ++i) {
    EXPECT_GT(taught.trainer->step(examples, options)->pause_seconds, 0);
    whole.insert(sight());
  }
  done = true;
  reader.join();
  return looks();
}

TEST(Step, AStreamedUpdateIsOnePause) {
  const Looks looks = look_during_streamed_steps(/*live=*/false, [](const Looks& so_far) { return so_far.count > 30; });
  EXPECT_GT(looks.count, 30);
  EXPECT_EQ(looks.torn, 0);
}

// The control of the test above: the same reader catches an update in pieces.
TEST(Step, ALiveStreamedUpdateIsSeenInPieces) {
  const Looks looks = look_during_streamed_steps(/*live=*/true, [](const Looks& so_far) { return so_far.torn > 0; });
  EXPECT_GT(looks.torn, 0);
}

model::ModelConfig wide_config() {
  model::ModelConfig c{.vocab_size = 1500,
                       .hidden_size = 768,
                       .intermediate_size = 1024,
                       .layers = 2,
                       .heads = 6,
                       .kv_heads = 6,
                       .head_dim = 128};
  c.max_positions = 4096;
  c.tie_embeddings = true;
  return c;
}

// Everything predicts something, so the number of graded tokens is the length but one.
data::Example graded_text(int64_t tokens) {
  data::Example example;
  for (int64_t t = 0; t < tokens; ++t) {
    example.tokens.push_back(static_cast<int32_t>(t * t % 1500));
    example.weights.push_back(t > 0 ? 1.0F : 0.0F);
  }
  return example;
}

// Few tokens, whose norms come from T x T matrices, and many, for which those of square matrices come from tiles.
TEST(Memory, NothingOfAWeightsSizeIsAllocatedByAFactoredStep) {
  for (const Method method : {Method::kApolloMini, Method::kApollo}) {
    for (const int64_t tokens : {9, 195}) {
      Taught taught(wide_config(), at::kBFloat16, {.method = method, .rank = 4});
      const data::Example example = graded_text(tokens);
      const weights::MemoryWatch watch;
      ASSERT_TRUE(taught.trainer->step({&example, 1}, by(GradientPath::kFactored)).ok());
      EXPECT_GT(watch.largest(), 0U);
      EXPECT_LT(watch.largest(), 768U * 768 * 2) << "the smallest matrix; " << tokens << " tokens";
    }
  }
}

// A long text: factors of one layer at a time instead of all, and no more than one dense matrix.
TEST(Memory, StreamingKeepsOneLayersGradients) {
  model::ModelConfig config = wide_config();
  config.layers = 16, config.hidden_size = 64, config.head_dim = 16, config.intermediate_size = 128;
  const data::Example example = graded_text(1500);
  const auto peak = [&](GradientPath path) {
    Taught taught(config, at::kBFloat16, {});
    StepOptions options = by(path);
    options.kept_bytes = 0;
    const weights::MemoryWatch watch;
    EXPECT_TRUE(taught.trainer->step({&example, 1}, options).ok());
    return watch.peak();
  };
  // X and dY of qkv, o, gate_up and down.
  const size_t layer = 1500 * 2 * ((64 + 288) + (96 + 64) + (64 + 256) + (128 + 64));
  const size_t streaming = peak(GradientPath::kStreaming), factored = peak(GradientPath::kFactored);
  EXPECT_LT(streaming + 8 * layer, factored);  // of 16 layers; what both need beside them peaks at another time
}

}  // namespace
}  // namespace lathe::train
