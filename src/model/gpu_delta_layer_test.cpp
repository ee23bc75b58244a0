// A gated delta layer by a GPU's own kernels against the same layer, operation by operation, in fp32 on the CPU: what
// it gives, the states it leaves, and every gradient. Without a GPU every test skips itself.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

#include "gpu/device.h"
#include "model/cuda_delta_layer.h"
#include "model/layers/gated_delta.h"

namespace lathe::model {
namespace {

// Opened before anything else of torch runs in this process.
const Result<c10::Device>& device() {
  static const Result<c10::Device> opened = gpu::open("cuda");
  return opened;
}

// bf16 rounds about ten times between in- and output of a layer, each time by up to 2^-9 of a number.
constexpr double kTolerance = 1.2e-2;

// ‖a - b‖ / ‖b‖; infinite where a is not finite.
double error(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.detach().to(at::kCPU, at::kDouble), y = b.detach().to(at::kCPU, at::kDouble);
  const double e = ((x - y).norm() / y.norm().clamp_min(1e-30)).item<double>();
  return std::isfinite(e) ? e : std::numeric_limits<double>::infinity();
}

// A layer's weights on one device: all of them bf16 numbers, held in `dtype`.
struct Layer {
  ModelConfig config;
  std::vector<weights::Parameter> held{7};
  DeltaParameters p;

  Layer(const Layer& other, at::Device to, at::ScalarType dtype) : config(other.config), held(other.held) {
    for (weights::Parameter& parameter : held) parameter.data = parameter.data.to(to, dtype);
    held[3].data = held[3].data.to(at::kFloat);
    point();
  }
  Layer(int64_t key_heads, int64_t value_heads) {
    config.hidden_size = 96;
    config.rms_norm_eps = 1e-6;
    config.layers = 1;
    config.delta = {.key_heads = key_heads, .value_heads = value_heads, .key_dim = 128, .value_dim = 128, .kernel = 4};
    const DeltaConfig& c = config.delta;
    const std::vector<std::vector<int64_t>> shapes{{c.channels() + c.values(), 96},
                                                   {2 * value_heads, 96},
                                                   {c.channels() * 4},
                                                   {value_heads},
                                                   {value_heads},
                                                   {128},
                                                   {96, c.values()}};
    for (size_t i = 0; i < shapes.size(); ++i) {
      held[i].id = static_cast<int64_t>(i);
      held[i].name = std::to_string(i);
      const double scale = shapes[i].size() == 2 ? 0.1 : 0.5;
      held[i].data = (at::randn(shapes[i]) * scale + (i == 5 ? 1.0 : 0.0)).to(at::kBFloat16).to(at::kFloat);
    }
    point();
  }
  Layer& operator=(const Layer&) = delete;

 private:
  void point() {
    p = {.qkvz = &held[0],
         .ba = &held[1],
         .conv = &held[2],
         .a_log = &held[3],
         .dt_bias = &held[4],
         .norm = &held[5],
         .output = &held[6]};
  }
};

struct Outcome {
  at::Tensor y, dx;
  weights::GradientSet sink{7, weights::GradientForm::kDense};
  std::vector<SequenceState> states;
};

// Sequences of `counts` rows through the layer. Where they begin: at the start, or after `past` rows that were served
// before.
Outcome run(const Layer& layer, const std::vector<int64_t>& counts, const at::Tensor& x, const at::Tensor& past,
            const at::Tensor& dy) {
  Outcome out;
  const at::TensorOptions options = x.options();
  std::vector<SequenceRows> runs;
  int64_t begin = 0;
  for (const int64_t count : counts) {
    out.states.emplace_back(layer.config, options, count);
    runs.push_back({.begin = begin, .count = count});
    begin += count;
  }
  for (size_t i = 0; i < counts.size(); ++i) runs[i].state = &out.states[i];
  const Rotary rotary;
  if (past.defined()) {
    const at::NoGradGuard no_grad;
    for (const SequenceRows& own : runs) {
      const SequenceRows one{.begin = 0, .count = past.size(0), .state = own.state};
      delta_mixer({layer.config, 0, {&one, 1}, rotary, nullptr}, layer.p, past);
    }
  }
  const at::AutoGradMode mode(dy.defined());
  const at::Tensor leaf = x.detach().requires_grad_(dy.defined());
  out.y = delta_mixer({layer.config, 0, runs, rotary, dy.defined() ? &out.sink : nullptr}, layer.p, leaf);
  if (dy.defined()) out.dx = torch::autograd::grad({out.y}, {leaf}, {dy})[0];
  return out;
}

// A single row without a past is left out: the norm makes its output independent of β, whose gradient is then nothing
// but rounding.
struct Case {
  int64_t key_heads, value_heads;
  std::vector<int64_t> counts;
  int64_t past = 0;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.key_heads << "/" << c.value_heads << " heads, " << c.past << " rows before sequences of";
  for (const int64_t count : c.counts) *out << " " << count;
}

class GpuDeltaLayer : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!device().ok()) GTEST_SKIP() << device().error().message;
    at::manual_seed(3);
  }
  // The same numbers on both devices.
  static at::Tensor normal(int64_t rows) { return at::randn({rows, 96}).to(at::kBFloat16).to(at::kFloat); }
  static at::Tensor on_gpu(const at::Tensor& t) { return t.defined() ? t.to(*device(), at::kBFloat16) : t; }
};

TEST_P(GpuDeltaLayer, ServesAndTeachesAsOperationByOperation) {
  const Case& c = GetParam();
  const Layer expected_layer(c.key_heads, c.value_heads), layer(expected_layer, *device(), at::kBFloat16);
  ASSERT_TRUE(cuda::can_run_delta_layer(layer.config.delta, layer.p,
                                        at::TensorOptions().device(*device()).dtype(at::kBFloat16)));
  int64_t rows = 0;
  for (const int64_t count : c.counts) rows += count;
  const at::Tensor x = normal(rows), past = c.past ? normal(c.past) : at::Tensor(), dy = normal(rows);

  const Outcome served = run(layer, c.counts, on_gpu(x), on_gpu(past), {});
  const Outcome expected = run(expected_layer, c.counts, x, past, {});
  EXPECT_LT(error(served.y, expected.y), kTolerance);
  for (size_t i = 0; i < c.counts.size(); ++i) {
    const DeltaState &got = served.states[i].delta(0), &want = expected.states[i].delta(0);
    EXPECT_LT(error(got.recurrent, want.recurrent), kTolerance);
    EXPECT_LT(error(got.history, want.history), kTolerance);
  }

  const Outcome taught = run(layer, c.counts, on_gpu(x), on_gpu(past), on_gpu(dy));
  const Outcome reference = run(expected_layer, c.counts, x, past, dy);
  EXPECT_LT(error(taught.y, reference.y), kTolerance);
  EXPECT_LT(error(taught.dx, reference.dx), kTolerance);
  const char* names[] = {"qkvz", "ba", "conv", "a_log", "dt_bias", "norm", "output"};
  for (size_t i = 0; i < 7; ++i) {
    const bool matrix = reference.sink.matrices[i].dense.defined();
    const at::Tensor got = matrix ? taught.sink.matrices[i].dense : taught.sink.vectors[i];
    EXPECT_LT(error(got, matrix ? reference.sink.matrices[i].dense : reference.sink.vectors[i]), 2 * kTolerance)
        << names[i];
  }
  const Outcome again = run(layer, c.counts, on_gpu(x), on_gpu(past), on_gpu(dy));
  EXPECT_TRUE(at::equal(again.dx, taught.dx));
  EXPECT_TRUE(at::equal(again.sink.vectors[2], taught.sink.vectors[2]));
  EXPECT_TRUE(at::equal(again.sink.vectors[5], taught.sink.vectors[5]));
}

INSTANTIATE_TEST_SUITE_P(Shapes, GpuDeltaLayer,
                         ::testing::Values(Case{2, 2, {1}, 40}, Case{2, 6, {3}, 2}, Case{2, 4, {200}},
                                           Case{1, 3, {65}, 70}, Case{2, 4, {63, 1, 130, 5}, 9},
                                           Case{3, 3, {257, 64}}));

}  // namespace
}  // namespace lathe::model
