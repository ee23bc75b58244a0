// How close APOLLO's scales are to AdamW's, and what rounding leaves of an update, measured on a real model.
//
// usage: scaling_study MODEL_DIR TEXTS [STEPS]
// TEXTS: one JSON string per line (bench/delta_trace.py makes such a file), each cut to 128 tokens; 64 are graded.
// Teaches twice, by apollo_mini: one text again and again, as a correction does, and another text each step. For a few
// tensors it also keeps AdamW's own dense moments of the same gradients, and compares the length of what each scaling
// makes of the gradient with the length of AdamW's update: 1 is what the learning rate promises. Over kSeeds
// projections, all steps and tensors. Then one step of each rounding at three rates. docs/research/apollo.md shows the
// tables.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/env.h"
#include "model/model.h"
#include "optim/apollo.h"
#include "text/text.h"
#include "train/backward.h"
#include "train/trainer.h"

namespace lathe {
namespace {

constexpr int64_t kTokens = 128, kContext = 64;
constexpr uint32_t kSeeds = 8;
constexpr double kRate = 2e-5;

Result<std::vector<data::Example>> read_examples(const std::string& directory, const char* path, int64_t count) {
  const text::Text text = LATHE_TRY(text::Text::load(io::posix_env(), directory));
  std::vector<data::Example> examples;
  std::ifstream lines(path);
  for (std::string line; std::getline(lines, line) && std::ssize(examples) < count;) {
    const auto ids = LATHE_TRY(text.tokenizer().encode(nlohmann::json::parse(line).get<std::string>())).ids;
    if (std::ssize(ids) < kTokens) continue;
    data::Example example{.tokens = {ids.begin(), ids.begin() + kTokens}, .weights = std::vector<float>(kTokens, 1)};
    std::fill_n(example.weights.begin(), kContext, 0.0F);
    examples.push_back(std::move(example));
  }
  if (std::ssize(examples) < count) return invalid_argument("too few texts of enough tokens");
  return examples;
}

struct Scaling {
  const char* name;
  optim::Granularity granularity;
  int64_t rank;
  double limit;
};
using enum optim::Granularity;
constexpr Scaling kScalings[] = {
    {"tensor, rank 1, no limiter", kTensor, 1, 0},      {"tensor, rank 1 (apollo_mini)", kTensor, 1, 1.01},
    {"tensor, rank 8, no limiter", kTensor, 8, 0},      {"tensor, rank 8", kTensor, 8, 1.01},
    {"channel, rank 16, no limiter", kChannel, 16, 0},  {"channel, rank 128, no limiter", kChannel, 128, 0},
    {"channel, rank 128 (apollo)", kChannel, 128, 1.01}};

// One tensor under study: AdamW's moments, and those of every scaling under every seed.
struct Studied {
  const weights::Parameter* parameter;
  const weights::Part* part;
  at::Tensor m, v;
  optim::Moments moments[std::size(kScalings)][kSeeds];
};

std::vector<Studied> choose(const model::LoadedModel& loaded) {
  std::vector<Studied> studied;
  for (const weights::Parameter& parameter : loaded.store->parameters()) {
    for (const weights::Part& part : parameter.parts) {
      for (const int64_t layer : {int64_t{0}, loaded.model->config().layers / 2, loaded.model->config().layers - 1}) {
        const std::string prefix = "model.layers." + std::to_string(layer) + ".";
        for (const char* name : {"self_attn.q_proj.weight", "self_attn.v_proj.weight", "mlp.down_proj.weight"})
          if (part.name == prefix + name) studied.push_back({&parameter, &part, {}, {}, {}});
      }
    }
  }
  return studied;
}

// ‖AdamW's update‖ of this gradient, decay aside.
double adam_norm(Studied& tensor, const at::Tensor& g, int64_t step, const optim::OptimizerConfig& config) {
  const optim::BiasCorrection correction = optim::bias_correction(config, step);
  tensor.m = tensor.m.defined() ? config.beta1 * tensor.m + (1 - config.beta1) * g : (1 - config.beta1) * g;
  tensor.v = tensor.v.defined() ? config.beta2 * tensor.v + (1 - config.beta2) * g * g : (1 - config.beta2) * g * g;
  return (correction.first * tensor.m / ((correction.second * tensor.v).sqrt() + config.epsilon)).norm().item<double>();
}

struct Sample {
  double ratio, limiter;
};

double quantile(std::vector<double>& values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

void print(const std::vector<Sample> (&samples)[std::size(kScalings)]) {
  std::printf("| %-29s | %6s | %13s | %15s |\n|---|---|---|---|\n", "scaling", "median", "5 % .. 95 %",
              "limiter active");
  for (size_t i = 0; i < std::size(kScalings); ++i) {
    std::vector<double> ratios;
    int64_t limited = 0;
    for (const Sample& sample : samples[i]) ratios.push_back(sample.ratio), limited += sample.limiter > 1;
    const double low = quantile(ratios, 0.05), median = quantile(ratios, 0.5), high = quantile(ratios, 0.95);
    std::printf("| %-29s | %6.2f | %5.2f .. %4.2f | %13.0f %% |\n", kScalings[i].name, median, low, high,
                100.0 * static_cast<double>(limited) / static_cast<double>(samples[i].size()));
  }
}

Status study(const std::string& directory, std::span<const data::Example> examples, int64_t steps) {
  const auto loaded = LATHE_TRY(model::load_model(io::posix_env(), directory));
  weights::Gate gate;
  train::Trainer trainer(*loaded.model, *loaded.store, gate, {});
  std::vector<Studied> studied = choose(loaded);
  std::vector<Sample> samples[std::size(kScalings)];
  for (int64_t step = 1; step <= steps; ++step) {
    const std::span one(&examples[static_cast<size_t>(step - 1) % examples.size()], 1);
    weights::GradientSet gradients(loaded.store->parameters().size(), weights::GradientForm::kDense);
    train::backward(*loaded.model, train::pack(one, data::ContextMode::kFrozen), {}, gradients);
    for (Studied& tensor : studied) {
      const optim::ParameterGradient whole = optim::gather(gradients.matrices[tensor.parameter->id], *tensor.parameter);
      optim::OptimizerConfig config;
      const optim::PartGradient gradient(whole, *tensor.part, config.tile_elements);
      const double adam =
          adam_norm(tensor, whole.dense.narrow(0, tensor.part->row_begin, tensor.part->rows), step, config);
      const optim::SquaredNorms norms = gradient.squared_norms(true);
      const int64_t m = std::min(gradient.rows().rows(), gradient.rows().columns());
      for (size_t i = 0; i < std::size(kScalings); ++i) {
        config.growth_limit = kScalings[i].limit;
        for (uint32_t seed = 0; seed < kSeeds; ++seed) {
          config.seed = seed;
          optim::Moments& moments = tensor.moments[i][seed];
          const at::Tensor p = optim::projection(config, std::min(kScalings[i].rank, m), m, gradient.tall(),
                                                 tensor.part->id, moments.updates);
          const optim::ApolloStep taken =
              optim::apollo_step(gradient, norms, p, kScalings[i].granularity, moments, config);
          moments = taken.next;
          samples[i].push_back({taken.next.norm / adam, taken.limiter});
        }
      }
    }
    LATHE_TRY(trainer.step(one, {.learning_rate = kRate}));
  }
  print(samples);
  return {};
}

Status study_rounding(const std::string& directory, const data::Example& example) {
  std::printf("| %-10s | %-5s | %7s | %19s |\n|---|---|---|---|\n", "rounding", "rate", "changed",
              "realised / intended");
  for (const auto rounding : {kernels::Rounding::kNearest, kernels::Rounding::kStochastic}) {
    for (const double rate : {1e-6, 1e-5, 1e-4}) {
      const auto loaded = LATHE_TRY(model::load_model(io::posix_env(), directory));
      weights::Gate gate;
      train::Trainer trainer(*loaded.model, *loaded.store, gate, {.rounding = rounding});
      const auto report = LATHE_TRY(trainer.step(std::span(&example, 1), {.learning_rate = rate}));
      const kernels::UpdateStats& total = report.commit.total;
      std::printf("| %-10s | %5.0e | %5.2f %% | %19.3f |\n",
                  rounding == kernels::Rounding::kNearest ? "nearest" : "stochastic", rate,
                  100 * static_cast<double>(total.changed) / static_cast<double>(total.elements),
                  total.realised_dot / total.intended_squared);
    }
  }
  return {};
}

Status run(const std::string& directory, const char* texts, int64_t steps) {
  const at::NoGradGuard no_grad;
  const auto examples = LATHE_TRY(read_examples(directory, texts, steps));
  std::printf("one text, %ld times; length of the update over AdamW's\n\n", static_cast<long>(steps));
  LATHE_TRY(study(directory, std::span(examples).first(1), steps));
  std::printf("\n%ld texts\n\n", static_cast<long>(steps));
  LATHE_TRY(study(directory, examples, steps));
  std::printf("\none step\n\n");
  return study_rounding(directory, examples[0]);
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  const int64_t steps = argc == 4 ? std::atoll(argv[3]) : 24;
  if (argc < 3 || argc > 4 || steps < 1) {
    std::fprintf(stderr, "usage: scaling_study MODEL_DIR TEXTS [STEPS]\n");
    return 2;
  }
  const lathe::Status done = lathe::run(argv[1], argv[2], steps);
  if (done.ok()) return 0;
  std::fprintf(stderr, "scaling_study: %s\n", done.error().message.c_str());
  return 1;
}
