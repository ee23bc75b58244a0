// A family is a list of facts: one made up here from two of them is served, differentiated and taught like any other.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "model/config_fields.h"
#include "model/families/decoder.h"
#include "train/backward.h"
#include "train/loss.h"
#include "train/trainer.h"

namespace lathe::train {
namespace {

// Like llama, but embeddings are scaled and norms are centred on zero.
Status read_made_up(model::ConfigFields& fields, model::ModelConfig& config) {
  LATHE_TRY(model::read_decoder(fields, {}, config));
  config.embedding_multiplier = fields.number("embedding_multiplier", 1);
  config.norm = model::NormStyle::kZeroCentred;
  return {};
}

model::ModelConfig made_up(double embedding_multiplier) {
  const nlohmann::json json = {{"vocab_size", 97},
                               {"hidden_size", 16},
                               {"intermediate_size", 24},
                               {"num_hidden_layers", 2},
                               {"num_attention_heads", 4},
                               {"num_key_value_heads", 2},
                               {"tie_word_embeddings", true},
                               {"embedding_multiplier", embedding_multiplier}};
  model::ConfigFields fields(json);
  model::ModelConfig config;
  EXPECT_TRUE(read_made_up(fields, config).ok());
  return config;
}

// Every multiplier that a family may set, none of them 1.
model::ModelConfig all_multipliers() {
  model::ModelConfig config = made_up(3);
  config.residual_multiplier = 0.4;
  config.attention_scale = 0.3;
  config.logits_divisor = 5;
  return config;
}

struct Made {
  explicit Made(const model::ModelConfig& config, at::ScalarType dtype = at::kDouble) {
    at::set_num_threads(1);
    at::manual_seed(3);
    for (const auto& spec : model::Model::parameter_specs(config))
      store.add(spec.name, (0.2 * at::randn(spec.held_shape())).to(dtype), spec.held_parts(), spec.vocabulary);
    model.emplace(config, store);
  }

  weights::WeightStore store;
  std::optional<model::Model> model;
};

data::Example lesson() {
  data::Example e;
  for (int32_t t = 0; t < 12; ++t) {
    e.tokens.push_back((t * 31 + 5) % 97);
    e.weights.push_back(t >= 6 ? 1.0F : 0.0F);
  }
  return e;
}

// In fp64 throughout, so that differences of it are exact enough: loss.h takes log-probabilities in fp32.
double loss_of(const model::Model& model, const Batch& batch) {
  const LiveForward live = forward_live(model, batch, 1024, /*keep_layers=*/false);
  const GradedRows graded = graded_rows(batch);
  const at::Tensor logits = model.logits(live.inputs.back().index_select(0, graded.rows));
  return at::nll_loss(at::log_softmax(logits, -1), graded.targets).item<double>();
}

// The gradient along a random direction through every parameter is the difference quotient of the loss.
void expect_gradient_of_the_loss(const model::ModelConfig& config) {
  Made made(config);
  const data::Example example = lesson();
  const Batch batch = pack({&example, 1}, data::ContextMode::kExact);
  weights::GradientSet set(made.store.parameters().size(), weights::GradientForm::kDense);
  backward(*made.model, batch, {}, set);
  for (const weights::Parameter& parameter : made.store.parameters()) {
    const at::Tensor& vector = set.vectors[parameter.id];
    const at::Tensor& gradient = vector.defined() ? vector : set.matrices[parameter.id].dense;
    ASSERT_TRUE(gradient.defined()) << parameter.name;
    const at::Tensor direction = at::randn(parameter.data.sizes(), parameter.data.options());
    constexpr double kStep = 1e-5;
    at::Tensor weight = parameter.data;
    weight.add_(direction, kStep);
    const double above = loss_of(*made.model, batch);
    weight.sub_(direction, 2 * kStep);
    const double below = loss_of(*made.model, batch);
    weight.add_(direction, kStep);
    const double slope = (gradient.to(at::kDouble).reshape(direction.sizes()) * direction).sum().item<double>();
    EXPECT_GT(std::abs(slope), 1e-7) << parameter.name;
    EXPECT_NEAR((above - below) / (2 * kStep), slope, 1e-4 * std::abs(slope) + 1e-8) << parameter.name;
  }
}

TEST(Family, GradientsOfOneMadeOfTwoFactsAreThoseOfItsLoss) {
  expect_gradient_of_the_loss(made_up(3));
}

TEST(Family, GradientsUnderEveryMultiplierAreThoseOfTheLoss) {
  expect_gradient_of_the_loss(all_multipliers());
}

TEST(Family, EachFactChangesWhatTheModelSays) {
  const data::Example example = lesson();
  const Batch batch = pack({&example, 1}, data::ContextMode::kExact);
  const double plain = loss_of(*Made(made_up(1)).model, batch);
  EXPECT_GT(std::abs(loss_of(*Made(made_up(3)).model, batch) - plain), 1e-3);
  for (double model::ModelConfig::*fact : {&model::ModelConfig::residual_multiplier,
                                           &model::ModelConfig::attention_scale, &model::ModelConfig::logits_divisor}) {
    model::ModelConfig config = made_up(1);
    config.*fact = 4;
    EXPECT_GT(std::abs(loss_of(*Made(config).model, batch) - plain), 1e-3);
  }
}

TEST(Family, OneMadeOfTwoFactsLearns) {
  Made made(made_up(3), at::kFloat);
  weights::Gate gate;
  Trainer trainer(*made.model, made.store, gate, {.method = optim::Method::kAdamW});
  const data::Example example = lesson();
  const auto first = trainer.step({&example, 1}, {.learning_rate = 1e-2});
  ASSERT_TRUE(first.ok()) << first.error().message;
  double last = first->loss;
  for (int i = 0; i < 20; ++i) last = trainer.step({&example, 1}, {.learning_rate = 1e-2}).value().loss;
  EXPECT_LT(last, 0.5 * first->loss);
}

}  // namespace
}  // namespace lathe::train
