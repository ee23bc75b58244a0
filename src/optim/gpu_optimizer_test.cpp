// The optimizer on a GPU against itself on the CPU: the same gradients, step after step. Without a GPU every test skips
// itself.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>

#include "gpu/device.h"
#include "optim/optimizer.h"

namespace lathe::optim {
namespace {

// Opened before anything else of torch runs in this process.
const Result<c10::Device>& device() {
  static const Result<c10::Device> opened = gpu::open("cuda");
  return opened;
}

constexpr int64_t kVocabulary = 300, kHidden = 96, kTokens = 24;

// One store of every kind of parameter: a table with lookups, a fused matrix, tall and wide ones, a vector.
struct Twin {
  weights::WeightStore store;
  std::unique_ptr<Optimizer> optimizer;

  Twin(const std::vector<at::Tensor>& initial, c10::Device place, const OptimizerConfig& config) {
    const auto here = [&](size_t i) { return initial[i].to(place, /*non_blocking=*/false, /*copy=*/true); };
    store.add("embed", here(0), {{"embed", kVocabulary}}, true);
    store.add("qkv", here(1), {{"q", kHidden}, {"k", 32}, {"v", 32}}, false);
    store.add("up", here(2), {{"up", 400}}, false);
    store.add("norm", here(3), {{"norm", kHidden}}, false);
    optimizer = std::make_unique<Optimizer>(store, config);
  }
};

std::vector<at::Tensor> initial_weights(at::ScalarType dtype) {
  std::vector<at::Tensor> weights;
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{kVocabulary, kHidden}, {kHidden + 64, kHidden}, {400, kHidden}, {kHidden}})
    weights.push_back((0.02 * at::randn(shape)).to(dtype));
  return weights;
}

// The factors of one step, moved to `place`.
weights::GradientSet gradients(const weights::WeightStore& store, const std::vector<at::Tensor>& factors,
                               c10::Device place, weights::GradientForm form) {
  weights::GradientSet set(store.parameters().size(), form);
  size_t next = 0;
  const auto take = [&] { return factors[next++].to(place); };
  for (const auto& parameter : store.parameters()) {
    if (parameter.data.dim() == 1) {
      set.vector(parameter, take());
      continue;
    }
    const at::Tensor x = take();
    set.linear(parameter, x, take());
    if (!parameter.vocabulary) continue;
    const at::Tensor ids = take();
    set.lookup(parameter, ids, take());
  }
  return set;
}

std::vector<at::Tensor> random_factors(const weights::WeightStore& store, at::ScalarType dtype) {
  std::vector<at::Tensor> factors;
  const auto random = [&](at::IntArrayRef shape, double scale) {
    factors.push_back((scale * at::randn(shape)).to(dtype));
  };
  for (const auto& parameter : store.parameters()) {
    if (parameter.data.dim() == 1) {
      factors.push_back(1e-3 * at::randn(parameter.data.sizes()));
      continue;
    }
    random({kTokens, parameter.data.size(1)}, 1);
    random({kTokens, parameter.data.size(0)}, 1e-3);
    if (!parameter.vocabulary) continue;
    factors.push_back(at::randint(kVocabulary, {2 * kTokens}, at::kLong));
    random({2 * kTokens, kHidden}, 1e-3);
  }
  return factors;
}

struct Case {
  Method method;
  at::ScalarType dtype;
  weights::GradientForm form;
  bool streamed;
  double tolerance;  // of the change of each weight, relative L2
};

void run(const Case& c) {
  SCOPED_TRACE(testing::Message() << method_name(c.method) << " " << c.dtype << (c.streamed ? " streamed" : "")
                                  << (c.form == weights::GradientForm::kDense ? " dense" : ""));
  const OptimizerConfig config{.method = c.method,
                               .rank = c.method == Method::kApollo ? std::optional<int64_t>(8) : std::nullopt,
                               .refresh_every = 2,
                               .weight_decay = 0.01,
                               .seed = 3};
  const std::vector<at::Tensor> initial = initial_weights(c.dtype);
  Twin cpu(initial, at::kCPU, config), gpu(initial, *device(), config);
  for (int step = 0; step < 4; ++step) {
    const std::vector<at::Tensor> factors = random_factors(cpu.store, c.dtype);
    CommitReport reports[2];
    size_t index = 0;
    for (Twin* twin : {&cpu, &gpu}) {
      auto set = gradients(twin->store, factors, twin == &cpu ? c10::Device(at::kCPU) : *device(), c.form);
      if (c.streamed) {
        StreamedUpdate update(*twin->optimizer, 1e-3);
        ASSERT_TRUE(update.apply(std::move(set)).ok());
        reports[index++] = update.report();
      } else {
        auto proposal = twin->optimizer->propose(std::move(set), 1e-3);
        ASSERT_TRUE(proposal.ok()) << proposal.error().message;
        reports[index++] = twin->optimizer->commit(std::move(*proposal));
      }
    }
    EXPECT_EQ(reports[0].total.elements, reports[1].total.elements);
    EXPECT_NEAR(reports[1].gradient_norm / reports[0].gradient_norm, 1, 1e-3);
    EXPECT_NEAR(static_cast<double>(reports[1].total.changed) / static_cast<double>(reports[0].total.changed), 1, 1e-2);
    EXPECT_NEAR(reports[1].total.intended_squared / reports[0].total.intended_squared, 1, 1e-2);
    ASSERT_EQ(reports[0].tensors.size(), reports[1].tensors.size());
  }
  for (size_t i = 0; i < initial.size(); ++i) {
    const at::Tensor start = initial[i].to(at::kDouble);
    const at::Tensor expected = cpu.store.parameters()[i].data.to(at::kDouble) - start;
    const at::Tensor actual = gpu.store.parameters()[i].data.cpu().to(at::kDouble) - start;
    EXPECT_GT(expected.norm().item<double>(), 0);
    EXPECT_LT(((actual - expected).norm() / expected.norm()).item<double>(), c.tolerance)
        << cpu.store.parameters()[i].name;
  }
}

class GpuOptimizer : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!device().ok()) GTEST_SKIP() << device().error().message;
    at::manual_seed(11);
  }
};

TEST_F(GpuOptimizer, AgreesWithTheCpuInFp32) {
  using weights::GradientForm;
  for (const Method method : {Method::kApolloMini, Method::kApollo, Method::kAdamW, Method::kSgd}) {
    run({method, at::kFloat, GradientForm::kFactors, false, 1e-3});
    run({method, at::kFloat, GradientForm::kDense, false, 1e-3});
    run({method, at::kFloat, GradientForm::kFactors, true, 1e-3});
  }
}

// The CPU multiplies tiles into bf16, the GPU into fp32, and both round with the same random bits: a few weights land
// on the other neighbour.
TEST_F(GpuOptimizer, AgreesWithTheCpuInBf16) {
  using weights::GradientForm;
  for (const Method method : {Method::kApolloMini, Method::kApollo, Method::kAdamW, Method::kSgd}) {
    run({method, at::kBFloat16, GradientForm::kFactors, false, 0.1});
    run({method, at::kBFloat16, GradientForm::kFactors, true, 0.1});
  }
}

TEST_F(GpuOptimizer, ComesToTheSameBitsEveryTime) {
  const OptimizerConfig config{.seed = 3};
  const std::vector<at::Tensor> initial = initial_weights(at::kBFloat16);
  Twin first(initial, *device(), config), second(initial, *device(), config);
  const std::vector<at::Tensor> factors = random_factors(first.store, at::kBFloat16);
  for (Twin* twin : {&first, &second}) {
    auto proposal =
        twin->optimizer->propose(gradients(twin->store, factors, *device(), weights::GradientForm::kFactors), 1e-3);
    ASSERT_TRUE(proposal.ok());
    twin->optimizer->commit(std::move(*proposal));
  }
  for (size_t i = 0; i < initial.size(); ++i)
    EXPECT_TRUE(at::equal(first.store.parameters()[i].data, second.store.parameters()[i].data)) << i;
}

TEST_F(GpuOptimizer, ContinuesAStateThatWasMadeOnTheCpu) {
  const OptimizerConfig config{.seed = 3};
  const std::vector<at::Tensor> initial = initial_weights(at::kFloat);
  Twin cpu(initial, at::kCPU, config), gpu(initial, *device(), config);
  const auto step = [&](Twin& twin, c10::Device place, const std::vector<at::Tensor>& factors) {
    auto proposal =
        twin.optimizer->propose(gradients(twin.store, factors, place, weights::GradientForm::kFactors), 1e-3);
    ASSERT_TRUE(proposal.ok());
    twin.optimizer->commit(std::move(*proposal));
  };
  step(cpu, at::kCPU, random_factors(cpu.store, at::kFloat));
  ASSERT_TRUE(gpu.optimizer->restore(cpu.optimizer->state()).ok());
  for (size_t i = 0; i < initial.size(); ++i) gpu.store.parameters()[i].data.copy_(cpu.store.parameters()[i].data);
  const std::vector<at::Tensor> factors = random_factors(cpu.store, at::kFloat);
  step(cpu, at::kCPU, factors);
  step(gpu, *device(), factors);
  for (size_t i = 0; i < initial.size(); ++i) {
    EXPECT_LT((gpu.store.parameters()[i].data.cpu() - cpu.store.parameters()[i].data).abs().max().item<double>(), 1e-6);
  }
  for (const auto& [name, tensor] : gpu.optimizer->state().tensors) EXPECT_TRUE(tensor.is_cpu()) << name;
}

TEST_F(GpuOptimizer, NamesAGradientThatIsNotFinite) {
  const std::vector<at::Tensor> initial = initial_weights(at::kBFloat16);
  Twin twin(initial, *device(), {});
  std::vector<at::Tensor> factors = random_factors(twin.store, at::kBFloat16);
  factors[4][0][0] = std::numeric_limits<float>::quiet_NaN();  // x of qkv
  const auto proposal =
      twin.optimizer->propose(gradients(twin.store, factors, *device(), weights::GradientForm::kFactors), 1e-3);
  ASSERT_FALSE(proposal.ok());
  EXPECT_NE(proposal.error().message.find("q is not finite"), std::string::npos) << proposal.error().message;
}

}  // namespace
}  // namespace lathe::optim
