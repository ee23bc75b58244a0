// What an optimizer step costs on a CPU compared with what the machine allows: propose and commit of SmolLM2-135M's
// shapes from bf16 factors of 96 graded tokens, and the rounding kernel alone.
//
// usage: optimizer_bench [TOKENS [METHOD]]
//        optimizer_bench norms      a product of the T x T matrices over one of the tiles of G: kFp32Cost in
//                                   optim/part_gradient.cpp
// Prints one JSON line per case. `share_of_copy` is the rate at which a pass reads and writes the weights, 4 bytes per
// bf16 weight, over the rate at which this machine copies memory in the same process.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "optim/optimizer.h"
#include "optim/part_gradient.h"

namespace lathe {
namespace {

constexpr int64_t kHidden = 576, kKeyValue = 192, kFeedForward = 1536, kVocabulary = 49152, kLayers = 30;
constexpr int kRepeats = 9;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class Work>
double best(Work&& work) {
  double seconds = 1e9;
  for (int i = 0; i < kRepeats; ++i) {
    const double begin = now();
    work();
    seconds = std::min(seconds, now() - begin);
  }
  return seconds;
}

at::Tensor random(at::IntArrayRef shape, double scale) {
  return (scale * at::randn(shape)).to(at::kBFloat16);
}

weights::WeightStore make_store() {
  weights::WeightStore store;
  store.add("embed", random({kVocabulary, kHidden}, 0.02), {{"embed", kVocabulary}}, true);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const std::string name = std::to_string(layer) + ".";
    store.add(name + "qkv", random({kHidden + 2 * kKeyValue, kHidden}, 0.02),
              {{name + "q", kHidden}, {name + "k", kKeyValue}, {name + "v", kKeyValue}}, false);
    store.add(name + "o", random({kHidden, kHidden}, 0.02), {{name + "o", kHidden}}, false);
    store.add(name + "gate_up", random({2 * kFeedForward, kHidden}, 0.02),
              {{name + "gate", kFeedForward}, {name + "up", kFeedForward}}, false);
    store.add(name + "down", random({kHidden, kFeedForward}, 0.02), {{name + "down", kHidden}}, false);
    store.add(name + "norm", random({kHidden}, 0.02), {{name + "norm", kHidden}}, false);
  }
  return store;
}

weights::GradientSet make_gradients(const weights::WeightStore& store, int64_t tokens) {
  weights::GradientSet set(store.parameters().size());
  for (const auto& parameter : store.parameters()) {
    if (parameter.data.dim() == 1) {
      set.vector(parameter, 1e-3 * at::randn(parameter.data.sizes()));
      continue;
    }
    set.linear(parameter, random({tokens, parameter.data.size(1)}, 1), random({tokens, parameter.data.size(0)}, 1e-3));
    if (parameter.vocabulary)
      set.lookup(parameter, at::randint(kVocabulary, {2 * tokens}, at::kLong), random({2 * tokens, kHidden}, 1e-3));
  }
  return set;
}

// Bytes per second, reading and writing.
double copy_rate() {
  const at::Tensor from = at::ones({int64_t{64} << 20}, at::kFloat), to = at::empty_like(from);
  return 2 * static_cast<double>(from.nbytes()) / best([&] { to.copy_(from); });
}

void rounding_case(const weights::WeightStore& store, kernels::Rounding rounding, double copy) {
  const at::Tensor& w = store.parameters()[0].data;
  const at::Tensor u = at::randn(w.sizes()).to(at::kBFloat16);
  auto* weights = reinterpret_cast<uint16_t*>(w.data_ptr<at::BFloat16>());
  const auto* updates = reinterpret_cast<const uint16_t*>(u.const_data_ptr<at::BFloat16>());
  const kernels::Update update{.step = 1e-9F, .rounding = rounding, .seed = 1};
  const double seconds = best([&] {
    at::parallel_for(0, w.numel(), 1 << 16, [&](int64_t begin, int64_t end) {
      kernels::update_bf16(weights + begin, updates + begin, begin, end - begin, update);
    });
  });
  const double rate = 6 * static_cast<double>(w.numel()) / seconds;  // reads u as well
  std::printf("{\"case\":\"rounding_%s\",\"gb_s\":%.1f,\"share_of_copy\":%.2f}\n",
              rounding == kernels::Rounding::kStochastic ? "stochastic" : "nearest", rate / 1e9, rate / copy);
}

void step_case(const weights::WeightStore& store, optim::Method method, int64_t tokens, double copy) {
  optim::Optimizer optimizer(store, {.method = method});
  double propose = 1e9, commit = 1e9;
  for (int i = 0; i < kRepeats; ++i) {
    auto gradients = make_gradients(store, tokens);
    const double begin = now();
    auto proposal = optimizer.propose(std::move(gradients), 1e-5);
    const double proposed = now();
    if (!proposal.ok()) std::fprintf(stderr, "%s\n", proposal.error().message.c_str()), std::exit(1);
    optimizer.commit(std::move(*proposal));
    propose = std::min(propose, proposed - begin);
    commit = std::min(commit, now() - proposed);
  }
  const double rate = 2 * static_cast<double>(store.byte_count()) / commit;
  std::printf(
      "{\"case\":\"%s\",\"tokens\":%ld,\"propose_s\":%.4f,\"commit_s\":%.4f,\"commit_gb_s\":%.2f,\"share_of_copy\":%."
      "2f,\"state_mib\":%.1f}\n",
      std::string(optim::method_name(method)).c_str(), static_cast<long>(tokens), propose, commit, rate / 1e9,
      rate / copy, static_cast<double>(optimizer.state_bytes()) / (1 << 20));
  std::fflush(stdout);
}

// Both ways to a gradient's norm, and what a product costs in the first, in products of the second: widening, sums and
// all. The two ways cost the same at that price.
void norms_case() {
  const weights::WeightStore store = make_store();
  for (const int64_t tokens : {32, 64, 96, 128, 192, 256}) {
    const auto gradients = make_gradients(store, tokens);
    double gram = 0, tiles = 0, gram_products = 0, tile_products = 0;
    for (const char* name : {"0.qkv", "0.o", "0.gate_up", "0.down"}) {
      const weights::Parameter& parameter = store.parameter(name);
      const optim::ParameterGradient whole = optim::gather(gradients.matrices[parameter.id], parameter);
      const optim::PartGradient part(whole, parameter.parts[0], optim::OptimizerConfig().tile_elements);
      const auto a = static_cast<double>(part.rows().rows()), b = static_cast<double>(part.rows().columns()),
                 t = static_cast<double>(tokens);
      gram += best([&] { part.norms_by_gram(/*channels=*/false); });
      tiles += best([&] { part.norms_by_tiles(/*channels=*/false); });
      gram_products += t * t * (a + b), tile_products += t * a * b;
    }
    std::printf("{\"case\":\"norms\",\"tokens\":%ld,\"gram_ms\":%.3f,\"tiles_ms\":%.3f,\"fp32_cost\":%.2f}\n",
                static_cast<long>(tokens), gram * 1e3, tiles * 1e3, gram / gram_products / (tiles / tile_products));
  }
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  using namespace lathe;
  const at::NoGradGuard no_grad;
  if (argc > 1 && std::string_view(argv[1]) == "norms") return norms_case(), 0;
  const int64_t tokens = argc > 1 ? std::atol(argv[1]) : 96;
  const auto store = make_store();
  const double copy = copy_rate();
  std::printf("{\"case\":\"limits\",\"threads\":%d,\"copy_gb_s\":%.1f,\"weights_mib\":%.0f}\n", at::get_num_threads(),
              copy / 1e9, static_cast<double>(store.byte_count()) / (1 << 20));
  rounding_case(store, kernels::Rounding::kStochastic, copy);
  rounding_case(store, kernels::Rounding::kNearest, copy);
  using optim::Method;
  for (const Method method : {Method::kApolloMini, Method::kApollo, Method::kSgd, Method::kAdamW}) {
    if (argc <= 2 || optim::method_name(method) == argv[2]) step_case(store, method, tokens, copy);
  }
  return 0;
}
