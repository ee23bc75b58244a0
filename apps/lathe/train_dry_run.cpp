#include "train_dry_run.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/memory.h"
#include "gpu/device.h"
#include "model/directory.h"
#include "model/model.h"
#include "text/text.h"
#include "train/estimate.h"
#include "train/machine.h"
#include "train/run.h"
#include "train_data.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

// Of a whole run.
struct Forecast {
  int64_t items = 0, evaluation_items = 0, steps = 0;
  train::PassSize work;  // of all steps
  double operations = 0;
  train::MemoryEstimate memory;
  int64_t available = 0;               // of the device's memory, now
  double operations_per_second = 0;    // that the device's matrix products reach
  std::optional<double> seconds_left;  // by the steps of an unfinished run in the directory
};

// What the steps that an unfinished run has not done yet would take at the speed of those it has.
std::optional<double> seconds_left(const train::RunState& unfinished, const train::RunPlan& plan,
                                   const train::Dataset& training) {
  int64_t tokens = 0, left = 0;
  double seconds = 0;
  for (const train::StepRecord& step : unfinished.steps) tokens += step.tokens, seconds += step.seconds;
  for (int64_t step = unfinished.step; step < std::ssize(plan.steps); ++step) {
    for (const data::ItemBatch& items : plan.steps[step])
      left += train::pass_size(training.examples_of(items), data::ContextMode::kFrozen).rows;
  }
  if (tokens == 0) return {};
  return seconds * static_cast<double>(left) / static_cast<double>(tokens);
}

int64_t available_on(c10::Device device) {
  if (device.is_cpu()) return available_bytes();
  const auto inventory = gpu::inventory();
  return inventory.ok() ? inventory->devices.at(device.index()).free_bytes : 0;
}

Result<Forecast> forecast(const TrainOptions& options) {
  io::Env& env = io::posix_env();
  train::RunSettings settings = LATHE_TRY(options.settings());
  const c10::Device device = LATHE_TRY(gpu::open(options.device));
  LATHE_TRY(model::check_directory(env, options.directory));
  const text::Text text = LATHE_TRY(text::Text::load(env, options.directory));
  const model::LoadedModel shapes = LATHE_TRY(model::load_model(env, options.directory, {.device = at::kMeta}));
  const model::ModelConfig& config = shapes.model->config();
  LATHE_TRY(model::check_tokens(config, text).at(options.directory));
  const TrainData data = LATHE_TRY(read_train_data(options, settings, text, config));
  const train::RunPlan plan = LATHE_TRY(train::plan_run(settings, *data.training, data.evaluation_set()));

  Forecast out{.items = data.training->items(),
               .evaluation_items = data.evaluation ? data.evaluation->items() : 0,
               .steps = std::ssize(plan.steps),
               .memory = train::estimate_memory(config, *shapes.store, settings, *data.training, plan,
                                                device.is_cpu() ? resident_bytes() : 0),
               .available = available_on(device)};
  for (const data::StepBatches& batches : plan.steps) {
    for (const data::ItemBatch& items : batches)
      out.work += train::pass_size(data.training->examples_of(items), settings.step.context);
  }
  out.operations = train::operations(config, *shapes.store, out.work);
  out.operations_per_second =
      train::product_operations_per_second(device, c10::typeMetaToScalarType(shapes.model->options().dtype()));
  const auto unfinished = LATHE_TRY(train::RunDirectory(env, options.directory).read());
  if (unfinished) out.seconds_left = seconds_left(*unfinished, plan, *data.training);
  return out;
}

struct Line {
  const char *key, *name;
  int64_t bytes;
};
std::vector<Line> lines_of(const train::MemoryEstimate& m) {
  return {{"weights", "weights", m.weights},
          {"optimizer", "optimizer state", m.optimizer},
          {"gradients", "gradients", m.gradients},
          {"context", "keys, values and states of context", m.context},
          {"activations", "activations", m.activations},
          {"references", "reference distributions", m.references},
          {"program", "program, libraries and data", m.program}};
}

Json json_of(const Forecast& f) {
  Json memory;
  for (const Line& line : lines_of(f.memory)) memory[line.key] = line.bytes;
  memory["total"] = f.memory.total();
  memory["available"] = f.available;
  Json json = {{"items", f.items},
               {"evaluation_items", f.evaluation_items},
               {"steps", f.steps},
               {"sequences", f.work.sequences},
               {"tokens", f.work.rows},
               {"graded_tokens", f.work.graded},
               {"memory_bytes", memory},
               {"operations", f.operations},
               {"operations_per_second_limit", f.operations_per_second},
               {"seconds_at_least", f.operations / f.operations_per_second}};
  if (f.seconds_left) json["seconds_left"] = *f.seconds_left;
  return json;
}

std::string duration(double seconds) {
  char text[32];
  const auto whole = static_cast<long>(seconds + 0.5);
  if (seconds < 100) {
    std::snprintf(text, sizeof text, "%.2g s", seconds);
  } else if (seconds < 100 * 60) {
    std::snprintf(text, sizeof text, "%ld min", (whole + 30) / 60);
  } else {
    std::snprintf(text, sizeof text, "%ld h %02ld min", whole / 3600, whole / 60 % 60);
  }
  return text;
}

double mebibytes(int64_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

void print(const TrainOptions& options, const Forecast& f) {
  const char* items = options.method == "dpo" ? "pairs" : "conversations";
  std::printf("data        %ld %s", static_cast<long>(f.items), items);
  if (f.evaluation_items > 0) std::printf(", and %ld to evaluate", static_cast<long>(f.evaluation_items));
  std::printf("\nsteps       %ld: %ld sequences of %ld tokens in all, %ld of them graded\n", static_cast<long>(f.steps),
              static_cast<long>(f.work.sequences), static_cast<long>(f.work.rows), static_cast<long>(f.work.graded));
  std::printf("memory      about %.0f MiB at the peak; %.0f MiB are available now%s\n", mebibytes(f.memory.total()),
              mebibytes(f.available),
              f.available > 0 && f.memory.total() > f.available
                  ? ": too little. A smaller --batch or --max-tokens, or --gradients streaming, needs less"
                  : "");
  for (const Line& line : lines_of(f.memory)) {
    if (line.bytes > 0) std::printf("            %8.1f MiB  %s\n", mebibytes(line.bytes), line.name);
  }
  if (f.seconds_left)
    std::printf("time        about %s more, at the speed of the unfinished run\n", duration(*f.seconds_left).c_str());
  std::printf("time        at least %s: %.3g operations, of which this machine's matrix products do %.3g a second\n",
              duration(f.operations / f.operations_per_second).c_str(), f.operations, f.operations_per_second);
  std::puts("Nothing was changed.");
}

}  // namespace

Result<bool> dry_run(const TrainOptions& options) {
  const Forecast result = LATHE_TRY(forecast(options));
  if (options.json) {
    std::puts(json_of(result).dump().c_str());
  } else {
    print(options, result);
  }
  return true;
}

}  // namespace lathe::cli
