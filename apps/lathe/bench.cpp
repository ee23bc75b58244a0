// `lathe bench`: how fast this machine serves and teaches a model, compared with what it could do at most. Weights
// change in memory only; the directory is read and never written.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "commands.h"
#include "delta/paths.h"
#include "gpu/device.h"
#include "io/env.h"
#include "model/model.h"
#include "train/machine.h"
#include "train/trainer.h"
#include "value_checks.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::json;

struct Options {
  std::string directory, device = "auto";
  int repeats = 3;
  bool json = false;
};

constexpr int64_t kPromptTokens = 512, kDecodedTokens = 32, kContextTokens = 64, kAnswerTokens = 64;

std::vector<int64_t> tokens(int64_t count, int64_t vocab_size) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back((i * 7919 + 101) % vocab_size);
  return ids;
}

// Runs `ids` after the state's past and returns the most probable next token [1].
at::Tensor advance(const model::Model& model, model::SequenceState& state, const at::Tensor& ids) {
  const model::SequenceRows run{.begin = 0, .count = ids.size(0), .position = state.length(), .state = &state};
  const at::Tensor x = model.forward(ids, {&run, 1});
  return model.logits(x.narrow(0, ids.size(0) - 1, 1)).argmax(-1);
}

class Bench {
 public:
  Bench(const model::LoadedModel& loaded, const Options& options)
      : model_(*loaded.model),
        store_(*loaded.store),
        options_(options),
        device_(model_.options().device()),
        read_bytes_s_(train::bytes_read_per_second(device_)),
        product_flop_s_(train::product_operations_per_second(device_, at::kBFloat16)),
        prompt_(at::tensor(tokens(std::min(kPromptTokens, model_.config().max_positions), model_.config().vocab_size),
                           at::kLong)
                    .to(device_)) {}

  Json run() {
    const at::NoGradGuard no_grad;
    Json out = {{"device", device_.str()},
                {"weights_bytes", store_.byte_count()},
                {"read_gb_s", read_bytes_s_ / 1e9},
                {"bf16_tflop_s", product_flop_s_ / 1e12}};
    out["prefill"] = prefill();
    out["decode"] = decode();
    out["correction"] = correction();
    return out;
  }

 private:
  // Two operations per weight and token, at the rate of matrix products.
  Json prefill() const {
    const double seconds = train::best_seconds(options_.repeats, device_, [&] {
      model::SequenceState state = model_.new_state(prompt_.size(0));
      advance(model_, state, prompt_);
    });
    const auto rows = static_cast<double>(prompt_.size(0));
    const double flop = 2.0 * rows * static_cast<double>(store_.element_count());
    return {{"tokens", prompt_.size(0)},
            {"tokens_per_second", rows / seconds},
            {"share_of_limit", flop / seconds / product_flop_s_}};
  }

  // Every token reads all weights once.
  Json decode() const {
    model::SequenceState state = model_.new_state(kContextTokens + kDecodedTokens * (options_.repeats + 1));
    at::Tensor next = advance(model_, state, prompt_.narrow(0, 0, std::min<int64_t>(kContextTokens, prompt_.size(0))));
    const double seconds = train::best_seconds(options_.repeats, device_, [&] {
      for (int64_t i = 0; i < kDecodedTokens; ++i) next = advance(model_, state, next);
    });
    const double per_token = seconds / kDecodedTokens;
    return {{"tokens_per_second", 1 / per_token},
            {"share_of_limit", static_cast<double>(store_.byte_count()) / per_token / read_bytes_s_}};
  }

  // One step on a short answer after a short context: forward, backward, proposal, commit.
  Json correction() const {
    data::Example example;
    for (const int64_t id : tokens(kContextTokens + kAnswerTokens, model_.config().vocab_size)) {
      example.weights.push_back(std::ssize(example.tokens) < kContextTokens ? 0.0F : 1.0F);
      example.tokens.push_back(static_cast<int32_t>(id));
    }
    weights::Gate gate;
    train::Trainer trainer(model_, store_, gate, {});
    std::optional<Error> failed;
    double pause = 0;
    const double seconds = train::best_seconds(options_.repeats, device_, [&] {
      const auto report = trainer.step(std::span<const data::Example>(&example, 1), {.learning_rate = 1e-6});
      if (report.ok()) {
        pause = report->pause_seconds;
      } else {
        failed = report.error();
      }
    });
    if (failed) return {{"error", failed->message}};
    return {{"graded_tokens", kAnswerTokens}, {"seconds_per_step", seconds}, {"pause_seconds", pause}};
  }

  const model::Model& model_;
  const weights::WeightStore& store_;
  const Options& options_;
  c10::Device device_;
  double read_bytes_s_, product_flop_s_;  // what the device can do
  at::Tensor prompt_;
};

void print_table(const Json& r) {
  const auto number = [](const Json& json, const char* name) { return json.at(name).get<double>(); };
  std::printf("device      %s: reads %.0f GB/s, multiplies bf16 at %.3g TFLOP/s\n",
              r["device"].get<std::string>().c_str(), number(r, "read_gb_s"), number(r, "bf16_tflop_s"));
  std::printf("prefill     %.0f tokens/s, %.0f %% of what the products allow\n",
              number(r["prefill"], "tokens_per_second"), 100 * number(r["prefill"], "share_of_limit"));
  std::printf("decode      %.1f tokens/s, %.0f %% of what the memory allows\n",
              number(r["decode"], "tokens_per_second"), 100 * number(r["decode"], "share_of_limit"));
  if (r["correction"].contains("error")) {
    std::printf("correction  failed: %s\n", r["correction"]["error"].get<std::string>().c_str());
  } else {
    std::printf("correction  %.3f s a step of %ld graded tokens, of which the weights are held for %.3f s\n",
                number(r["correction"], "seconds_per_step"), static_cast<long>(kAnswerTokens),
                number(r["correction"], "pause_seconds"));
  }
}

Status bench(const Options& options) {
  LATHE_TRY(delta::check_model_directory(io::posix_env(), options.directory));
  const c10::Device device = LATHE_TRY(gpu::open(options.device));
  const model::LoadedModel loaded =
      LATHE_TRY(model::load_model(io::posix_env(), options.directory, {.device = device}));
  const Json results = Bench(loaded, options).run();
  if (options.json) {
    std::printf("%s\n", results.dump().c_str());
  } else {
    print_table(results);
  }
  return {};
}

}  // namespace

Action add_bench(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "The model directory; it is not changed")->required();
  app.add_option("--device", options->device, "cpu, cuda, cuda:N or auto: the first GPU, if there is one")
      ->capture_default_str();
  app.add_option("--repeats", options->repeats, "Runs of each case; the fastest counts")
      ->check(integer(1, 1000))
      ->capture_default_str();
  app.add_flag("--json", options->json, "Print one JSON line");
  return [options] {
    try {
      const Status done = bench(*options);
      if (done.ok()) return 0;
      std::fprintf(stderr, "lathe bench: %s\n", done.error().message.c_str());
    } catch (const std::exception& e) {
      std::fprintf(stderr, "lathe bench: %s\n", e.what());
    }
    return 1;
  };
}

}  // namespace lathe::cli
