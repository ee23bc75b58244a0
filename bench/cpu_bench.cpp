// Speed and memory of serving and of one correction on a CPU, each case compared with this machine's limit.
//
// usage: cpu_bench MODEL_DIR prefill|decode|decode4|correction|train|train-factored|limits
// Prints one JSON line. One case per process, so that the peak memory is the case's own. bench/peer_transformers.py
// does the same work with transformers; bench/run.sh runs both in turn and makes the table.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstring>

#include "base/heap.h"
#include "io/env.h"
#include "model/model.h"
#include "train/estimate.h"
#include "train/trainer.h"

namespace lathe {
namespace {

constexpr int64_t kPromptTokens = 512, kDecodeTokens = 64, kContextTokens = 64, kAnswerTokens = 64, kSteps = 8;
constexpr int64_t kTrainTokens = 512, kTrainSteps = 5;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double peak_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

// The peer's random ids.
std::vector<int64_t> tokens(int64_t count) {
  uint64_t state = 12345;
  std::vector<int64_t> out;
  for (int64_t i = 0; i < count; ++i) {
    state = (state * 1103515245 + 12345) % (uint64_t{1} << 31);
    out.push_back(static_cast<int64_t>(1000 + state % 40000));
  }
  return out;
}

double prefill(const model::Model& model) {
  const at::Tensor ids = at::tensor(tokens(kPromptTokens), at::kLong);
  const auto run = [&] {
    model::SequenceState state = model.new_state(kPromptTokens);
    const model::SequenceRows rows{.begin = 0, .count = kPromptTokens, .position = 0, .state = &state};
    const at::Tensor x = model.forward(ids, {&rows, 1});
    return model.logits(x.narrow(0, kPromptTokens - 1, 1));
  };
  run();
  const double begin = now();
  run();
  return kPromptTokens / (now() - begin);
}

// `batch` sequences, one token each per step.
double decode(const model::Model& model, int64_t batch) {
  constexpr int64_t kPrompt = 32;
  std::vector<model::SequenceState> states;
  for (int64_t b = 0; b < batch; ++b) states.push_back(model.new_state(kPrompt + kDecodeTokens));
  const auto step = [&](const at::Tensor& ids, int64_t rows) {
    std::vector<model::SequenceRows> runs;
    for (int64_t b = 0; b < batch; ++b)
      runs.push_back({.begin = b * rows, .count = rows, .position = states[b].length(), .state = &states[b]});
    const at::Tensor x = model.forward(ids, runs);
    return model.logits(x.view({batch, rows, -1}).select(1, rows - 1)).argmax(-1);
  };
  at::Tensor next = step(at::tensor(tokens(kPrompt), at::kLong).repeat({batch}), kPrompt);
  for (int64_t warm_up = 0; warm_up < 4; ++warm_up) next = step(next, 1);
  const double begin = now();
  for (int64_t t = 0; t < kDecodeTokens; ++t) next = step(next, 1);
  return static_cast<double>(batch * kDecodeTokens) / (now() - begin);
}

Result<double> correction(const model::LoadedModel& loaded) {
  data::Example example;
  for (const int64_t id : tokens(kContextTokens + kAnswerTokens)) {
    example.weights.push_back(std::ssize(example.tokens) < kContextTokens ? 0.0F : 1.0F);
    example.tokens.push_back(static_cast<int32_t>(id));
  }
  weights::Gate gate;
  train::Trainer trainer(*loaded.model, *loaded.store, gate, {});
  double propose = 0, commit = 0;
  for (int64_t step = 0; step < kSteps; ++step) {
    const double begin = now();
    auto proposal = LATHE_TRY(trainer.propose({&example, 1}, {.learning_rate = 2e-5}));
    const double proposed = now();
    LATHE_TRY(trainer.commit(std::move(proposal)));
    propose += proposed - begin;
    commit += now() - proposed;
  }
  std::fprintf(stderr, "per step: propose %.3f s, commit %.3f s\n", propose / kSteps, commit / kSteps);
  return propose + commit;
}

struct TrainSpeed {
  double tokens_per_second = 0;
  double operations_per_second = 0;  // of those that a step cannot avoid
};

// Steps of fine-tuning on one sequence of which every token is graded; the first is not counted.
Result<TrainSpeed> train(const model::LoadedModel& loaded, train::GradientPath path) {
  data::Example example;
  for (const int64_t id : tokens(kTrainTokens)) {
    example.weights.push_back(example.tokens.empty() ? 0.0F : 1.0F);
    example.tokens.push_back(static_cast<int32_t>(id));
  }
  weights::Gate gate;
  train::Trainer trainer(*loaded.model, *loaded.store, gate, {});
  double begin = 0;
  for (int64_t step = 0; step <= kTrainSteps; ++step) {
    if (step == 1) begin = now();
    LATHE_TRY(trainer.step({&example, 1}, {.learning_rate = 2e-5, .gradients = path}));
  }
  const double seconds = (now() - begin) / kTrainSteps;
  const train::PassSize size = train::pass_size({&example, 1}, data::ContextMode::kFrozen);
  return TrainSpeed{kTrainTokens / seconds, train::operations(loaded.model->config(), *loaded.store, size) / seconds};
}

// What the machine can do: reading memory, copying memory (GB/s), and bf16 matrix products (GFLOP/s).
void print_limits() {
  const at::Tensor source = at::ones({int64_t{256} << 18}, at::kFloat), target = at::empty_like(source);
  const auto best = [](auto&& work) {
    double seconds = 1e9;
    for (int i = 0; i < 5; ++i) {
      const double begin = now();
      work();
      seconds = std::min(seconds, now() - begin);
    }
    return seconds;
  };
  const auto bytes = static_cast<double>(source.nbytes());
  const double read = best([&] { source.sum(); }), copy = best([&] { target.copy_(source); });
  const at::Tensor a = at::randn({512, 2048}).to(at::kBFloat16), b = at::randn({2048, 2048}).to(at::kBFloat16);
  const double product = best([&] { at::linear(a, b); });
  std::printf("{\"case\":\"limits\",\"read_gb_s\":%.1f,\"copy_gb_s\":%.1f,\"bf16_gflop_s\":%.0f}\n", bytes / read / 1e9,
              2 * bytes / copy / 1e9, 2.0 * 512 * 2048 * 2048 / product / 1e9);
}

Status run(const std::string& directory, const std::string& name) {
  const at::NoGradGuard no_grad;
  if (name == "limits") {
    print_limits();
    return {};
  }
  const model::LoadedModel loaded = LATHE_TRY(model::load_model(io::posix_env(), directory));
  const char* unit = "tokens_per_second";
  double value = 0;
  if (name == "prefill") {
    value = prefill(*loaded.model);
  } else if (name == "decode" || name == "decode4") {
    value = decode(*loaded.model, name == "decode" ? 1 : 4);
  } else if (name == "train" || name == "train-factored") {
    const auto path = name == "train" ? train::GradientPath::kStreaming : train::GradientPath::kFactored;
    const TrainSpeed speed = LATHE_TRY(train(loaded, path));
    std::printf("{\"case\":\"%s\",\"tokens_per_second\":%.4g,\"gflop_s\":%.4g,\"peak_mib\":%.0f}\n", name.c_str(),
                speed.tokens_per_second, speed.operations_per_second / 1e9, peak_mib());
    return {};
  } else if (name == "correction") {
    unit = "seconds";
    value = LATHE_TRY(correction(loaded));
  } else {
    return invalid_argument("unknown case " + name);
  }
  std::printf("{\"case\":\"%s\",\"%s\":%.4g,\"peak_mib\":%.0f,\"weights_mib\":%.0f}\n", name.c_str(), unit, value,
              peak_mib(), static_cast<double>(loaded.store->byte_count()) / (1 << 20));
  return {};
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: cpu_bench MODEL_DIR prefill|decode|decode4|correction|train|train-factored|limits\n");
    return 2;
  }
  lathe::set_up_heap();  // as lathe does
  const lathe::Status done = lathe::run(argv[1], argv[2]);
  if (done.ok()) return 0;
  std::fprintf(stderr, "cpu_bench: %s\n", done.error().message.c_str());
  return 1;
}
