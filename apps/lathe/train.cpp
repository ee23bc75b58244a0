#include <signal.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "commands.h"
#include "gpu/device.h"
#include "history/history.h"
#include "history/sync.h"
#include "model/directory.h"
#include "model/model.h"
#include "optim/state_file.h"
#include "text/text.h"
#include "train/estimate.h"
#include "train/machine.h"
#include "train/report.h"
#include "train/run.h"
#include "train_data.h"
#include "train_dry_run.h"
#include "train_options.h"
#include "train_progress.h"

namespace lathe::cli {
namespace {

std::atomic<bool> interrupted{false};

void print_outcome(const TrainOptions& options, const train::RunOutcome& outcome, int64_t planned) {
  using End = train::RunOutcome::End;
  const char* directory = options.directory.c_str();
  if (options.json) {
    constexpr const char* kEnds[] = {"done", "interrupted", "no_better", "was_done"};
    const nlohmann::ordered_json json = {{"end", kEnds[static_cast<int>(outcome.end)]},
                                         {"steps", outcome.steps},
                                         {"planned_steps", planned},
                                         {"installed_step", outcome.installed},
                                         {"version", outcome.version},
                                         {"delta_bytes", outcome.delta_bytes}};
    std::puts(json.dump().c_str());
  } else if (outcome.end == End::kDone) {
    std::printf(
        "done after %ld of %ld steps: %s holds version %ld, the weights of step %ld (%.1f MiB of changes); "
        "`lathe rollback %s` undoes it\n",
        static_cast<long>(outcome.steps), static_cast<long>(planned), directory, static_cast<long>(outcome.version),
        static_cast<long>(outcome.installed), static_cast<double>(outcome.delta_bytes) / (1 << 20), directory);
  } else if (outcome.end == End::kNoBetter) {
    std::printf(
        "stopped after %ld of %ld steps: no evaluation was better than the one before the first step; %s is "
        "unchanged\n",
        static_cast<long>(outcome.steps), static_cast<long>(planned), directory);
  } else if (outcome.end == End::kWasDone) {
    std::printf("the run was complete: %s holds its result, version %ld\n", directory,
                static_cast<long>(outcome.version));
  } else if (outcome.steps > 0) {
    std::printf("interrupted after %ld of %ld steps: %s is unchanged; the same command with --resume continues\n",
                static_cast<long>(outcome.steps), static_cast<long>(planned), directory);
  } else {
    std::printf("interrupted before the first step: %s is unchanged\n", directory);
  }
}

// Finishes what a crash interrupted.
Status recover(io::Env& env, const std::string& directory) {
  const auto lock = LATHE_TRY(delta::lock_history(env, directory));
  LATHE_TRY(history::recover(env, directory));
  return {};
}

// The optimizer state of the version that the directory holds.
Status restore_optimizer(io::Env& env, const std::string& directory, optim::Optimizer& optimizer) {
  const auto lock = LATHE_TRY(delta::lock_history(env, directory));
  const auto history = LATHE_TRY(history::History::open(env, directory));
  const history::DeltaFile* delta = history.leading_to(history.head().version);
  const delta::DeltaReader* reader = delta ? LATHE_TRY(history.reader(*delta)) : nullptr;
  const auto* state = reader ? reader->find_attachment(history::kOptimizerName) : nullptr;
  if (!state) {
    return not_found("version " + std::to_string(history.head().version) + " of " + directory +
                     " has no optimizer state to continue with; omit --keep-optimizer");
  }
  const std::string bytes = LATHE_TRY(reader->attachment_text(*state, uint64_t{1} << 40));
  return optimizer.restore(LATHE_TRY(optim::read_state(std::as_bytes(std::span(bytes)))));
}

// One observer after the other.
class Observers final : public train::RunObserver {
 public:
  void add(train::RunObserver* observer) { all_.push_back(observer); }

  void referenced(int64_t items, int64_t of) override {
    for (auto* one : all_) one->referenced(items, of);
  }
  void stepped(const train::StepRecord& record, const train::StepReport& report) override {
    for (auto* one : all_) one->stepped(record, report);
  }
  void evaluated(const train::Evaluation& evaluation) override {
    for (auto* one : all_) one->evaluated(evaluation);
  }
  void saving(int64_t step) override {
    for (auto* one : all_) one->saving(step);
  }
  void saved(int64_t step, double seconds) override {
    for (auto* one : all_) one->saved(step, seconds);
  }
  void warned(const std::string& message) override {
    for (auto* one : all_) one->warned(message);
  }

 private:
  std::vector<train::RunObserver*> all_;
};

train::Report::About about(const TrainOptions& options, const train::RunSettings& settings, const train::Run& run,
                           const weights::WeightStore& store) {
  const auto name = [](const std::string& path) {
    return std::filesystem::path(path).lexically_normal().filename().string();
  };
  const std::filesystem::path directory = std::filesystem::absolute(options.directory).lexically_normal();
  const std::string model = directory.filename().empty() ? name(directory.parent_path()) : name(directory);
  char rate[32];
  std::snprintf(rate, sizeof rate, "%.3g", settings.schedule.peak);
  return {.title = model + ", " + options.method + " on " + name(options.data),
          .subtitle = options.optimizer + ", learning rate " + rate + " " + options.schedule + "; " +
                      std::to_string(run.planned_steps()) + " steps of " + std::to_string(settings.plan.batch) +
                      (settings.plan.accumulate > 1 ? " x " + std::to_string(settings.plan.accumulate) : "") +
                      (settings.objective.preferences ? " pairs" : " conversations"),
          .steps = run.planned_steps(),
          .tensors = store.part_count()};
}

// What each step has to compute, and what the device can: for a line per step.
StepLimits step_limits(const train::Run& run, const model::LoadedModel& loaded, const train::Dataset& training,
                       const train::StepOptions& step) {
  const at::TensorOptions options = loaded.model->options();
  StepLimits limits{
      .per_second = train::product_operations_per_second(options.device(), c10::typeMetaToScalarType(options.dtype()))};
  for (const data::StepBatches& batches : run.plan().steps) {
    double& operations = limits.operations.emplace_back();
    for (const data::ItemBatch& items : batches) {
      const train::PassSize size = train::pass_size(training.examples_of(items), step.context);
      operations += train::operations(loaded.model->config(), *loaded.store, size);
    }
  }
  return limits;
}

Result<train::RunOutcome> execute(io::Env& env, const TrainOptions& options, const train::RunSettings& settings,
                                  train::Run& run, const model::LoadedModel& loaded, const train::Dataset& training) {
  using Detail = TrainProgress::Detail;
  TrainProgress progress(options.quiet     ? Detail::kNone
                         : options.verbose ? Detail::kEveryStep
                                           : Detail::kBar,
                         run.planned_steps(), run.done_steps(),
                         options.verbose ? step_limits(run, loaded, training, settings.step) : StepLimits());
  Observers observers;
  observers.add(&progress);
  std::unique_ptr<train::Report> report;
  if (!options.report.empty() && !run.was_done()) {
    report = LATHE_TRY(train::Report::begin(env, options.report, about(options, settings, run, *loaded.store),
                                            run.state(), [&](const std::string& m) { progress.warned(m); }));
    observers.add(report.get());
  }
  progress.begin();
  const auto outcome = run.execute(observers, [] { return interrupted.load(); });
  if (report) report->finish();
  return outcome;
}

// Done, or an outcome that is none: then false.
Result<bool> train(const TrainOptions& options) {
  io::Env& env = io::posix_env();
  const train::RunSettings settings = LATHE_TRY(options.settings());
  LATHE_TRY(settings.validate());
  const c10::Device device = LATHE_TRY(gpu::open(options.device));
  LATHE_TRY(model::check_directory(env, options.directory));
  const text::Text text = LATHE_TRY(text::Text::load(env, options.directory));
  const model::ModelConfig config = LATHE_TRY(model::read_config(env, options.directory));
  LATHE_TRY(model::check_tokens(config, text).at(options.directory));
  const auto lock = LATHE_TRY(delta::lock_directory(env, options.directory));
  LATHE_TRY(recover(env, options.directory));
  if (!options.quiet) std::fprintf(stderr, "loading %s and %s\n", options.directory.c_str(), options.data.c_str());
  const model::LoadedModel loaded = LATHE_TRY(model::load_model(env, options.directory, {.device = device}));
  TrainData data = LATHE_TRY(read_train_data(options, settings, text, loaded.model->config()));

  weights::Gate gate;
  train::Trainer trainer(*loaded.model, *loaded.store, gate, settings.optimizer);
  if (options.keep_optimizer) LATHE_TRY(restore_optimizer(env, options.directory, trainer.optimizer()));
  train::Run run(env, options.directory, *loaded.store, trainer, settings, *data.training, data.evaluation_set(),
                 data.hashes);
  using Begin = train::Run::Begin;
  LATHE_TRY(run.prepare(options.resume ? Begin::kResume : options.restart ? Begin::kRestart : Begin::kNew));
  std::fprintf(stderr, "%ld %s, %ld steps", static_cast<long>(data.training->items()),
               settings.objective.preferences ? "pairs" : "conversations", static_cast<long>(run.planned_steps()));
  if (run.done_steps() > 0) std::fprintf(stderr, ", %ld of them done", static_cast<long>(run.done_steps()));
  std::fputs("\n", stderr);
  const train::RunOutcome outcome = LATHE_TRY(execute(env, options, settings, run, loaded, *data.training));
  print_outcome(options, outcome, run.planned_steps());
  return outcome.end != train::RunOutcome::End::kInterrupted;
}

}  // namespace

Action add_train(CLI::App& app) {
  const auto options = std::make_shared<TrainOptions>();
  add_train_options(app, *options);
  return [options] {
    const auto interrupt = [](int) { interrupted = true; };
    signal(SIGINT, interrupt);
    signal(SIGTERM, interrupt);
    const auto done = options->dry_run ? dry_run(*options) : train(*options);
    if (done.ok()) return *done ? 0 : 1;
    std::fprintf(stderr, "lathe train: %s\n", done.error().message.c_str());
    return 1;
  };
}

}  // namespace lathe::cli
