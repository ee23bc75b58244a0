// Optimizer state through a file: the same bits afterwards, and refusals that change nothing.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "delta/test_files.h"
#include "optim/optimizer.h"
#include "optim/state_file.h"

namespace lathe::optim {
namespace {

weights::WeightStore make_store() {
  at::manual_seed(7);
  weights::WeightStore store;
  const auto options = at::TensorOptions().dtype(at::kBFloat16);
  store.add("fused", at::randn({16, 8}).to(options), {{"a", 10}, {"b", 6}}, false);
  store.add("norm", at::ones({8}, options), {{"norm", 8}}, false);
  store.add("table", at::randn({40, 8}).to(options), {{"table", 40}}, true);
  return store;
}

weights::GradientSet make_gradients(const weights::WeightStore& store, int64_t step) {
  at::manual_seed(100 + step);
  weights::GradientSet set(3);
  const auto random = [](at::IntArrayRef shape) { return at::randn(shape).to(at::kBFloat16); };
  set.linear(store.parameters()[0], random({5, 8}), random({5, 16}));
  if (step % 2 == 0) set.vector(store.parameters()[1], at::randn({8}));
  set.lookup(store.parameters()[2], at::tensor({3, 9, 3, 39}, at::kLong), random({4, 8}));
  return set;
}

void step(Optimizer& optimizer, const weights::WeightStore& store, int64_t index) {
  optimizer.commit(optimizer.propose(make_gradients(store, index), 1e-2).value());
}

std::vector<std::byte> encoded(const OptimizerState& state) {
  delta::MemorySink file;
  EXPECT_TRUE(write_state(state, file).ok());
  return file.data;
}

class Restored : public ::testing::TestWithParam<std::tuple<Method, kernels::Rounding>> {};

TEST_P(Restored, ContinuesToTheSameBits) {
  const OptimizerConfig config{
      .method = std::get<0>(GetParam()), .rank = 2, .refresh_every = 3, .rounding = std::get<1>(GetParam())};
  const auto store = make_store();
  Optimizer whole(store, config);
  for (int64_t i = 0; i < 4; ++i) step(whole, store, i);
  const std::vector<std::byte> file = encoded(whole.state());
  const auto copy = make_store();
  for (size_t i = 0; i < 3; ++i) copy.parameters()[i].data.copy_(store.parameters()[i].data);

  Optimizer resumed(copy, config);
  ASSERT_TRUE(resumed.restore(read_state(file).value()).ok());
  EXPECT_EQ(resumed.updates(), 4);
  EXPECT_EQ(resumed.state_bytes(), whole.state_bytes());
  for (int64_t i = 4; i < 9; ++i) step(whole, store, i), step(resumed, copy, i);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(store.parameters()[i].data, copy.parameters()[i].data)) << i;
  EXPECT_EQ(encoded(whole.state()), encoded(resumed.state()));
}

INSTANTIATE_TEST_SUITE_P(
    Methods, Restored,
    ::testing::Combine(::testing::Values(Method::kApolloMini, Method::kApollo, Method::kAdamW, Method::kSgd),
                       ::testing::Values(kernels::Rounding::kStochastic, kernels::Rounding::kShadow)));

TEST(State, DropsShadowsThatARunHasNoUseFor) {
  const auto store = make_store();
  Optimizer shadowed(store, {.method = Method::kSgd, .rounding = kernels::Rounding::kShadow}),
      plain(store, {.method = Method::kSgd});
  step(shadowed, store, 0);
  EXPECT_TRUE(shadowed.state().tensors.contains("a.shadow"));
  ASSERT_TRUE(plain.restore(shadowed.state()).ok());
  EXPECT_TRUE(plain.state().tensors.empty());
  EXPECT_EQ(plain.updates(), 1);
}

// apollo_mini of rank r keeps 2 r fp32 numbers per line of the larger side; adamw two per weight; P is never kept.
TEST(State, IsAsLargeAsPromised) {
  // `projections`: numbers of P, which an optimizer holds and its state does not.
  const auto bytes = [](OptimizerConfig config, int64_t projections = 0) {
    const auto store = make_store();
    Optimizer optimizer(store, config);
    const int64_t full = optimizer.full_bytes();
    for (int64_t i = 0; i < 2; ++i) step(optimizer, store, i);
    EXPECT_EQ(full, optimizer.state_bytes() + 4 * projections);
    return optimizer.state_bytes();
  };
  EXPECT_EQ(bytes({}, 8 + 6 + 8), 2 * 4 * (10 + 8 + 8 + 40));
  EXPECT_EQ(bytes({.rank = 3}, 3 * (8 + 6 + 8)), 2 * 4 * (3 * (10 + 8 + 40) + 8));
  EXPECT_EQ(bytes({.method = Method::kApollo, .rank = 4}, 4 * (8 + 6) + 8), 2 * 4 * (4 * (10 + 8) + 8 + 40));
  EXPECT_EQ(bytes({.method = Method::kAdamW}), 2 * 4 * (16 * 8 + 8 + 40 * 8));
  EXPECT_EQ(bytes({.method = Method::kSgd}), 0);
}

class Refusal : public ::testing::Test {
 protected:
  Refusal() : store_(make_store()), optimizer_(store_, {}) {
    for (int64_t i = 0; i < 2; ++i) step(optimizer_, store_, i);
    good_ = read_state(encoded(optimizer_.state())).value();
  }

  // The message with which an optimizer refuses `state`; nothing of its own may change.
  static std::string refusal(Optimizer& optimizer, const OptimizerState& state) {
    const auto before = encoded(optimizer.state());
    const Status restored = optimizer.restore(state);
    EXPECT_FALSE(restored.ok());
    EXPECT_EQ(encoded(optimizer.state()), before);
    return restored.ok() ? "" : restored.error().message;
  }
  std::string refuse(const OptimizerState& state) { return refusal(optimizer_, state); }
  std::string refuse_by(const OptimizerConfig& config) {
    Optimizer other(store_, config);
    return refusal(other, good_);
  }

  static bool names(const std::string& message, const std::string& what) {
    return message.find(what) != std::string::npos;
  }

  weights::WeightStore store_;
  Optimizer optimizer_;
  OptimizerState good_;
};

TEST_F(Refusal, OfOtherSettingsNamesThem) {
  EXPECT_TRUE(names(refuse_by({.method = Method::kAdamW}), "method apollo_mini"));
  EXPECT_TRUE(names(refuse_by({.rank = 2}), "rank 1"));
  EXPECT_TRUE(names(refuse_by({.refresh_every = 7}), "refresh_every 200"));
  EXPECT_TRUE(names(refuse_by({.seed = 9}), "seed 1"));
}

TEST_F(Refusal, OfAnotherModelNamesTheTensor) {
  OptimizerState state = good_;
  for (const char* field : {".m", ".v", ".updates", ".norm"})
    state.tensors["stranger" + std::string(field)] = at::ones({1});
  EXPECT_TRUE(names(refuse(state), "stranger.m"));
  state = good_;
  state.tensors["table.m"] = at::ones({41, 1});
  EXPECT_TRUE(names(refuse(state), "table.m"));
  state = good_;
  state.tensors.erase("a.v");
  EXPECT_TRUE(names(refuse(state), "a.v"));
}

TEST_F(Refusal, OfDamagedNumbersNamesTheTensor) {
  const auto with = [&](const std::string& name, const at::Tensor& value) {
    OptimizerState state = good_;
    state.tensors[name] = value;
    return refuse(state);
  };
  EXPECT_TRUE(names(with("b.m", at::full({1, 8}, NAN)), "b.m"));
  EXPECT_TRUE(names(with("b.v", at::full({1, 8}, -1.0)), "b.v"));
  EXPECT_TRUE(names(with("a.updates", at::zeros({1}, at::kLong)), "a.updates"));
  EXPECT_TRUE(names(with("a.shadow", at::ones({9, 8})), "a.shadow"));
  EXPECT_TRUE(names(with("a.shadow", at::full({10, 8}, NAN)), "a.shadow"));
  EXPECT_TRUE(names(with("stranger.shadow", at::ones({9, 8})), "stranger.shadow"));
  EXPECT_TRUE(names(with("a.norm", at::full({1}, -1.0, at::kDouble)), "a.norm"));
  OptimizerState state = good_;
  state.settings["updates"] = "2x";
  EXPECT_TRUE(names(refuse(state), "2x"));
}

TEST_F(Refusal, OfOtherFiles) {
  std::vector<std::byte> file = encoded(good_);
  EXPECT_FALSE(read_state(std::span(file).first(file.size() - 1)).ok());
  EXPECT_FALSE(read_state({}).ok());
  const std::string header("\x02\0\0\0\0\0\0\0{}", 10);  // a safetensors file, but not of this kind
  EXPECT_FALSE(read_state(std::as_bytes(std::span(header))).ok());
}

}  // namespace
}  // namespace lathe::optim
