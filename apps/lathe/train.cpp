#include <signal.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "api/training_file.h"
#include "checkpoint/history.h"
#include "checkpoint/sync.h"
#include "commands.h"
#include "gpu/device.h"
#include "model/model.h"
#include "optim/state_file.h"
#include "text/text.h"
#include "train/run.h"
#include "train_options.h"
#include "train_progress.h"

namespace lathe::cli {
namespace {

std::atomic<bool> interrupted{false};

// The training set, the evaluation set if there is one, and what they were made of.
struct Data {
  std::optional<train::Dataset> training, evaluation;
  std::map<std::string, std::string> hashes;
};

Result<Data> read_data(const TrainOptions& options, const train::RunSettings& settings, const text::Text& text,
                       const model::ModelConfig& config) {
  const bool preferences = settings.objective.preferences;
  const auto format = preferences ? api::TrainingFormat::kPreferences : api::TrainingFormat::kConversations;
  const auto read = [&](const std::string& path) {
    return api::read_training_file(path, format, text, config.vocab_size, config.max_positions);
  };
  Data data;
  api::TrainingFile training = LATHE_TRY(read(options.data));
  data.hashes = {{"data file", training.hash}, {"evaluation set", "none"}};
  data.training.emplace(std::move(training.examples), settings.objective);
  if (!options.evaluation.empty()) {
    api::TrainingFile evaluation = LATHE_TRY(read(options.evaluation));
    data.hashes["evaluation set"] = evaluation.hash;
    data.evaluation.emplace(std::move(evaluation.examples), settings.objective);
  } else if (options.evaluation_fraction > 0) {
    const auto items =
        LATHE_TRY(data::held_out(data.training->items(), options.evaluation_fraction, settings.plan.seed));
    data.hashes["evaluation set"] = std::to_string(options.evaluation_fraction) + " of the data";
    data.evaluation.emplace(data.training->split_off(items));
  }
  // The same file through another tokenizer or template is another data set.
  data.hashes["tokenised data"] = data.training->hash();
  return data;
}

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
        "`lathe rollback` undoes it\n",
        static_cast<long>(outcome.steps), static_cast<long>(planned), directory, static_cast<long>(outcome.version),
        static_cast<long>(outcome.installed), static_cast<double>(outcome.delta_bytes) / (1 << 20));
  } else if (outcome.end == End::kNoBetter) {
    std::printf(
        "stopped after %ld of %ld steps: no evaluation was better than the one before the first step; %s is "
        "unchanged\n",
        static_cast<long>(outcome.steps), static_cast<long>(planned), directory);
  } else if (outcome.end == End::kWasDone) {
    std::printf("the run was complete: %s holds its result, version %ld\n", directory,
                static_cast<long>(outcome.version));
  } else if (outcome.steps > 0) {
    std::printf("interrupted after %ld of %ld steps: %s is unchanged; the same command with --resume goes on\n",
                static_cast<long>(outcome.steps), static_cast<long>(planned), directory);
  } else {
    std::printf("interrupted before the first step: %s is unchanged\n", directory);
  }
}

// Finishes what a crash interrupted.
Status recover(io::Env& env, const std::string& directory) {
  const auto lock = LATHE_TRY(checkpoint::lock_history(env, directory));
  LATHE_TRY(checkpoint::recover(env, directory));
  return {};
}

// The optimizer state of the version that the directory holds.
Status restore_optimizer(io::Env& env, const std::string& directory, optim::Optimizer& optimizer) {
  const auto lock = LATHE_TRY(checkpoint::lock_history(env, directory));
  const auto history = LATHE_TRY(checkpoint::History::open(env, directory));
  const checkpoint::DeltaFile* delta = history.leading_to(history.head().version);
  const checkpoint::DeltaReader* reader = delta ? LATHE_TRY(history.reader(*delta)) : nullptr;
  const auto* state = reader ? reader->find_attachment(checkpoint::kOptimizerName) : nullptr;
  if (!state) {
    return not_found("version " + std::to_string(history.head().version) + " of " + directory +
                     " has no optimizer state to go on with; leave out --keep-optimizer");
  }
  const std::string bytes = LATHE_TRY(reader->attachment_text(*state, uint64_t{1} << 40));
  return optimizer.restore(LATHE_TRY(optim::read_state(std::as_bytes(std::span(bytes)))));
}

// Done, or an outcome that is none: then false.
Result<bool> train(const TrainOptions& options) {
  io::Env& env = io::posix_env();
  const train::RunSettings settings = LATHE_TRY(options.settings());
  LATHE_TRY(settings.validate());
  const c10::Device device = LATHE_TRY(gpu::open(options.device));
  const auto lock = LATHE_TRY(checkpoint::lock_directory(env, options.directory));
  LATHE_TRY(recover(env, options.directory));
  const text::Text text = LATHE_TRY(text::Text::load(env, options.directory));
  const model::LoadedModel loaded = LATHE_TRY(model::load_model(env, options.directory, {.device = device}));
  Data data = LATHE_TRY(read_data(options, settings, text, loaded.model->config()));

  weights::Gate gate;
  train::Trainer trainer(*loaded.model, *loaded.store, gate, settings.optimizer);
  if (options.keep_optimizer) LATHE_TRY(restore_optimizer(env, options.directory, trainer.optimizer()));
  train::Run run(env, options.directory, *loaded.store, trainer, settings, *data.training,
                 data.evaluation ? &*data.evaluation : nullptr, data.hashes);
  using Begin = train::Run::Begin;
  LATHE_TRY(run.prepare(options.resume ? Begin::kResume : options.restart ? Begin::kRestart : Begin::kNew));
  std::fprintf(stderr, "%ld %s, %ld steps", static_cast<long>(data.training->items()),
               settings.objective.preferences ? "pairs" : "conversations", static_cast<long>(run.planned_steps()));
  if (run.done_steps() > 0) std::fprintf(stderr, ", %ld of them done", static_cast<long>(run.done_steps()));
  std::fputs("\n", stderr);

  using Detail = TrainProgress::Detail;
  TrainProgress progress(options.quiet     ? Detail::kNone
                         : options.verbose ? Detail::kEveryStep
                                           : Detail::kBar,
                         run.planned_steps(), run.done_steps());
  const train::RunOutcome outcome = LATHE_TRY(run.execute(progress, [] { return interrupted.load(); }));
  print_outcome(options, outcome, run.planned_steps());
  return outcome.end != train::RunOutcome::End::kInterrupted;
}

}  // namespace

Run add_train(CLI::App& app) {
  const auto options = std::make_shared<TrainOptions>();
  add_train_options(app, *options);
  return [options] {
    const auto interrupt = [](int) { interrupted = true; };
    signal(SIGINT, interrupt);
    signal(SIGTERM, interrupt);
    const auto done = train(*options);
    if (done.ok()) return *done ? 0 : 1;
    std::fprintf(stderr, "lathe train: %s\n", done.error().message.c_str());
    return 1;
  };
}

}  // namespace lathe::cli
