#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>

#include "api/requests.h"
#include "checkpoint/sync.h"
#include "commands.h"
#include "gpu/device.h"
#include "model/model.h"
#include "optim/state_file.h"
#include "text/text.h"
#include "train/trainer.h"
#include "weights/live_tensors.h"

namespace lathe::cli {
namespace {

struct Options {
  std::string directory, data, optimizer = "apollo_mini", context = "frozen", device = "auto";
  double learning_rate = 2e-5, weight_decay = 0;
  int64_t epochs = 1, batch = 8, max_steps = 0;
  uint32_t seed = 1;
  bool quiet = false, resume = false, materialize = false;
};

std::atomic<bool> interrupted{false};

// One example per line; a bad line is named by its number, and nothing is trained.
Result<std::vector<data::Example>> read_examples(const std::string& path, const text::Text& text,
                                                 const model::ModelConfig& config) {
  std::ifstream file(path);
  if (!file) return not_found("cannot open " + path);
  std::vector<data::Example> examples;
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = path + ":" + std::to_string(number);
    // Without weights every assistant turn of a training conversation is learned, as in OpenAI's fine-tuning.
    api::LearnExample parsed = LATHE_TRY(api::parse_training_line(line).at(where));
    text::GradedTokens graded = LATHE_TRY(text.graded(parsed.messages, parsed.turn_weights, parsed.render).at(where));
    data::Example example{.tokens = std::move(graded.ids), .weights = std::move(graded.weights)};
    LATHE_TRY(data::validate(example, config.vocab_size, config.max_positions).at(where));
    examples.push_back(std::move(example));
  }
  if (examples.empty()) return invalid_argument(path + " has no examples");
  return examples;
}

// A line that is rewritten in place on a terminal, and printed now and then elsewhere.
class Progress {
 public:
  Progress(int64_t steps, bool quiet) : steps_(steps), quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0) {}

  void show(int64_t step, double loss, int64_t tokens) {
    tokens_ += tokens;
    const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
    if (quiet_ || (!terminal_ && step != steps_ && step % std::max<int64_t>(1, steps_ / 20) != 0)) return;
    constexpr int64_t kWidth = 24;
    const auto filled = static_cast<size_t>(kWidth * step / steps_);
    const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
    std::fprintf(stderr, "%s[%s] step %ld/%ld  loss %.4f  %.0f tokens/s  %.0f s left%s", terminal_ ? "\r" : "",
                 bar.c_str(), static_cast<long>(step), static_cast<long>(steps_), loss,
                 static_cast<double>(tokens_) / elapsed,
                 elapsed / static_cast<double>(step) * static_cast<double>(steps_ - step),
                 terminal_ && step != steps_ ? "   " : "\n");
  }

 private:
  int64_t steps_;
  bool quiet_, terminal_;
  int64_t tokens_ = 0;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

// Examples in a new order every epoch, `batch` at a time.
class Batches {
 public:
  Batches(std::vector<data::Example> examples, int64_t batch, uint32_t seed)
      : examples_(std::move(examples)), batch_(batch), random_(seed), order_(examples_.size()) {
    std::iota(order_.begin(), order_.end(), size_t{0});
  }
  int64_t per_epoch() const { return (static_cast<int64_t>(examples_.size()) + batch_ - 1) / batch_; }
  std::vector<data::Example> next() {
    std::vector<data::Example> out;
    if (at_ == 0) std::shuffle(order_.begin(), order_.end(), random_);
    const size_t end = std::min(order_.size(), at_ + static_cast<size_t>(batch_));
    for (; at_ < end; ++at_) out.push_back(examples_[order_[at_]]);
    if (at_ == order_.size()) at_ = 0;
    return out;
  }

 private:
  std::vector<data::Example> examples_;
  int64_t batch_;
  std::mt19937 random_;
  std::vector<size_t> order_;
  size_t at_ = 0;
};

// Hands on what is appended.
class Forward final : public io::WritableFile {
 public:
  explicit Forward(const checkpoint::Attachment::Sink& sink) : sink_(sink) {}
  Status append(std::span<const std::byte> bytes) override { return sink_(bytes); }
  Status sync() override { return {}; }
  Status close() override { return {}; }

 private:
  const checkpoint::Attachment::Sink& sink_;
};

// Weights and optimizer state become one version.
Result<checkpoint::SyncReport> save(io::Env& env, const Options& options, const weights::WeightStore& store,
                                    const optim::Optimizer& optimizer, int64_t version) {
  const checkpoint::Attachment state{.name = checkpoint::kOptimizerName,
                                     .write = [&](const checkpoint::Attachment::Sink& sink) -> Status {
                                       Forward file(sink);
                                       return optim::write_state(optimizer.state(), file);
                                     }};
  checkpoint::SyncOptions how;
  how.record.kind = "train";
  how.record.note = options.data;
  how.attachments.push_back(state);
  how.materialize = options.materialize;
  how.even_if_equal = true;
  return checkpoint::sync(env, options.directory, weights::LiveTensors(store), version, how);
}

// The optimizer state of the version that the directory holds.
Status resume(io::Env& env, const std::string& directory, optim::Optimizer& optimizer) {
  const auto lock = LATHE_TRY(checkpoint::lock_history(env, directory));
  const auto history = LATHE_TRY(checkpoint::History::open(env, directory));
  const checkpoint::DeltaFile* delta = history.leading_to(history.head().version);
  const checkpoint::DeltaReader* reader = delta ? LATHE_TRY(history.reader(*delta)) : nullptr;
  const auto* state = reader ? reader->find_attachment(checkpoint::kOptimizerName) : nullptr;
  if (!state) {
    return not_found("version " + std::to_string(history.head().version) + " of " + directory +
                     " has no optimizer state to go on with; leave out --resume");
  }
  const std::string bytes = LATHE_TRY(reader->attachment_text(*state, uint64_t{1} << 40));
  return optimizer.restore(LATHE_TRY(optim::read_state(std::as_bytes(std::span(bytes)))));
}

// Finishes what a crash interrupted.
Result<int64_t> recovered_version(io::Env& env, const std::string& directory) {
  const auto lock = LATHE_TRY(checkpoint::lock_history(env, directory));
  LATHE_TRY(checkpoint::recover(env, directory));
  return checkpoint::read_version(env, directory);
}

Status train(const Options& options) {
  io::Env& env = io::posix_env();
  const c10::Device device = LATHE_TRY(gpu::open(options.device));
  const auto lock = LATHE_TRY(checkpoint::lock_directory(env, options.directory));
  const int64_t on_disk = LATHE_TRY(recovered_version(env, options.directory));
  const text::Text text = LATHE_TRY(text::Text::load(env, options.directory));
  const model::LoadedModel loaded = LATHE_TRY(model::load_model(env, options.directory, {.device = device}));
  optim::OptimizerConfig optimizer{.method = LATHE_TRY(optim::parse_method(options.optimizer)),
                                   .weight_decay = options.weight_decay,
                                   .seed = options.seed};
  LATHE_TRY(optimizer.validate());
  auto examples = LATHE_TRY(read_examples(options.data, text, loaded.model->config()));
  const size_t count = examples.size();
  Batches batches(std::move(examples), options.batch, options.seed);
  int64_t steps = batches.per_epoch() * options.epochs;
  if (options.max_steps > 0) steps = std::min(steps, options.max_steps);
  std::fprintf(stderr, "%zu examples, %ld steps\n", count, static_cast<long>(steps));

  weights::Gate gate;
  train::Trainer trainer(*loaded.model, *loaded.store, gate, optimizer);
  const train::StepOptions step_options{
      .learning_rate = options.learning_rate,
      .context = options.context == "exact" ? data::ContextMode::kExact : data::ContextMode::kFrozen};
  if (options.resume) LATHE_TRY(resume(env, options.directory, trainer.optimizer()));
  Progress progress(steps, options.quiet);
  int64_t step = 0;
  while (step < steps && !interrupted) {
    const std::vector<data::Example> batch = batches.next();
    auto proposal = LATHE_TRY(trainer.propose(batch, step_options));
    const double loss = proposal.loss;
    const int64_t tokens = proposal.tokens;
    LATHE_TRY(trainer.commit(std::move(proposal)));
    progress.show(++step, loss, tokens);
  }
  const auto report = LATHE_TRY(save(env, options, *loaded.store, trainer.optimizer(), on_disk + step));
  std::printf("%s after %ld of %ld steps: %s holds version %ld (%.1f MiB of changes); `lathe rollback` undoes it\n",
              interrupted ? "stopped" : "done", static_cast<long>(step), static_cast<long>(steps),
              options.directory.c_str(), static_cast<long>(report.version),
              static_cast<double>(report.delta_bytes) / (1 << 20));
  return {};
}

}  // namespace

Run add_train(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "The model directory; it is changed in place")->required();
  app.add_option("DATA", options->data,
                 "OpenAI chat JSONL: {\"messages\": [...]} per line, with optional \"weight\" per assistant message")
      ->required();
  app.add_option("--lr", options->learning_rate, "Learning rate, as for AdamW")
      ->check(CLI::Range(1e-9, 1.0))
      ->capture_default_str();
  app.add_option("--epochs", options->epochs, "Times through the data")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--batch", options->batch, "Conversations per step")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--max-steps", options->max_steps, "Stop after this many; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--optimizer", options->optimizer, "apollo_mini, apollo, adamw or sgd")
      ->check(CLI::IsMember({"apollo_mini", "apollo", "adamw", "sgd"}))
      ->capture_default_str();
  app.add_option("--weight-decay", options->weight_decay, "Decoupled weight decay of matrices")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--context", options->context, "frozen: no gradient through context; exact: through everything")
      ->check(CLI::IsMember({"frozen", "exact"}))
      ->capture_default_str();
  app.add_option("--device", options->device, "auto (a GPU if there is one), cpu, cuda or cuda:N")
      ->envname("LATHE_DEVICE")
      ->capture_default_str();
  app.add_option("--seed", options->seed, "Of order, projections and rounding")->capture_default_str();
  app.add_flag("--resume", options->resume, "Go on with the optimizer state that the last `lathe train` left");
  app.add_flag("--materialize", options->materialize, "Replace shards that are symbolic links by copies");
  app.add_flag("--quiet", options->quiet, "No progress bar");
  return [options] {
    const auto interrupt = [](int) { interrupted = true; };
    signal(SIGINT, interrupt);
    signal(SIGTERM, interrupt);
    const Status done = train(*options);
    if (done.ok()) return 0;
    std::fprintf(stderr, "\nlathe train: %s\n", done.error().message.c_str());
    return 1;
  };
}

}  // namespace lathe::cli
