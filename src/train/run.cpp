#include "train/run.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "delta/model_dir.h"
#include "history/sync.h"
#include "optim/state_file.h"
#include "weights/live_tensors.h"

namespace lathe::train {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// The shortest text that reads back as the same number.
std::string exact(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

// Hands on what is appended.
class Forward final : public io::WritableFile {
 public:
  explicit Forward(const history::Attachment::Sink& sink) : sink_(sink) {}
  Status append(std::span<const std::byte> bytes) override { return sink_(bytes); }
  Status sync() override { return {}; }
  Status close() override { return {}; }

 private:
  const history::Attachment::Sink& sink_;
};

// Settings that may differ in a resumed run, at the price of other last bits.
constexpr const char* kThreads = "threads";

}  // namespace

Status RunSettings::validate() const {
  LATHE_TRY(objective.validate());
  LATHE_TRY(plan.validate());
  LATHE_TRY(optimizer.validate());
  if (step.gradients == GradientPath::kStreaming && plan.accumulate > 1) {
    return invalid_argument("streamed gradients are written at once: accumulate needs them as factors or dense");
  }
  if (evaluate_every < 0) return invalid_argument("evaluate_every must be 0 (only at both ends) or more");
  if (patience < 0) return invalid_argument("patience must be 0 (never stop early) or more");
  if (save_steps < 0 || save_seconds < 0) return invalid_argument("save_steps and save_seconds must not be negative");
  return {};
}

std::map<std::string, std::string> RunSettings::fingerprint() const {
  const auto optional = [](const auto& value) { return value ? exact(static_cast<double>(*value)) : "default"; };
  const auto yes_no = [](bool value) { return value ? "yes" : "no"; };
  return {{"method", objective.preferences ? "dpo" : "sft"},
          {"beta", exact(objective.beta)},
          {"kl", exact(objective.kl)},
          {"kl tokens", std::to_string(objective.kl_tokens)},
          {"epochs", std::to_string(plan.epochs)},
          {"batch", std::to_string(plan.batch)},
          {"max tokens", std::to_string(plan.max_tokens)},
          {"accumulate", std::to_string(plan.accumulate)},
          {"max steps", std::to_string(plan.max_steps)},
          {"seed", std::to_string(plan.seed)},
          {"optimizer", std::string(optim::method_name(optimizer.method))},
          {"rank", optional(optimizer.rank)},
          {"refresh", std::to_string(optimizer.refresh_every)},
          {"beta1", exact(optimizer.beta1)},
          {"beta2", exact(optimizer.beta2)},
          {"epsilon", exact(optimizer.epsilon)},
          {"weight decay", exact(optimizer.weight_decay)},
          {"scale", optional(optimizer.scale)},
          {"growth limit", exact(optimizer.growth_limit)},
          {"train embeddings", yes_no(optimizer.train_embeddings)},
          {"rounding", std::to_string(static_cast<int>(optimizer.rounding))},
          {"optimizer seed", std::to_string(optimizer.seed)},
          {"compatibility", yes_no(optimizer.official_compat)},
          {"schedule", std::to_string(static_cast<int>(schedule.decay))},
          {"learning rate", exact(schedule.peak)},
          {"warm-up", std::to_string(schedule.warmup_steps)},
          {"final fraction", exact(schedule.final_fraction)},
          {"context", step.context == data::ContextMode::kExact ? "exact" : "frozen"},
          {"gradients", std::to_string(static_cast<int>(step.gradients))},
          {"chunk rows", std::to_string(step.chunk_rows)},
          {"evaluate every", std::to_string(evaluate_every)},
          {"patience", std::to_string(patience)},
          {kThreads, std::to_string(at::get_num_threads())}};
}

Run::Run(io::Env& env, std::string directory, weights::WeightStore& store, Trainer& trainer, RunSettings settings,
         Dataset& training, Dataset* evaluation, const std::map<std::string, std::string>& data_hashes)
    : env_(env),
      directory_(std::move(directory)),
      store_(store),
      trainer_(trainer),
      settings_(std::move(settings)),
      training_(training),
      evaluation_(evaluation),
      run_directory_(env, directory_) {
  fingerprint_ = settings_.fingerprint();
  for (const auto& [name, hash] : data_hashes) fingerprint_[name] = hash;
}

Result<RunPlan> plan_run(RunSettings& settings, const Dataset& training, const Dataset* evaluation) {
  RunPlan plan{.steps = LATHE_TRY(data::plan(training.tokens_per_item(), settings.plan))};
  if (evaluation) plan.evaluation = LATHE_TRY(data::in_order(evaluation->tokens_per_item(), settings.plan));
  if (settings.patience > 0 && (!evaluation || settings.evaluate_every == 0)) {
    return invalid_argument(
        "patience counts evaluations: it needs an evaluation set, and a number of steps between two");
  }
  settings.schedule.steps = std::ssize(plan.steps);
  LATHE_TRY(settings.validate());
  LATHE_TRY(settings.schedule.validate());
  return plan;
}

Status Run::prepare(Begin begin) {
  begin_ = begin;
  plan_ = LATHE_TRY(plan_run(settings_, training_, evaluation_));
  items_seen_.clear();
  for (const data::StepBatches& batches : plan_.steps) {
    int64_t seen = items_seen_.empty() ? 0 : items_seen_.back();
    for (const data::ItemBatch& batch : batches) seen += std::ssize(batch);
    items_seen_.push_back(seen);
  }
  // What the last act would refuse is refused before the first.
  if (!settings_.materialize) LATHE_TRY(history::refuse_links(env_, delta::Paths(directory_)));
  on_disk_ = LATHE_TRY(history::read_version(env_, directory_));
  fingerprint_["device"] = store_.parameters().front().data.device().str();
  fingerprint_["begins with"] = begins_with();
  fingerprint_["model"] = LATHE_TRY(weights_hash(store_));

  state_.settings = fingerprint_;
  return begin == Begin::kRestart ? Status() : find_unfinished();
}

Status Run::find_unfinished() {
  const auto unfinished = LATHE_TRY(run_directory_.read());
  if (begin_ == Begin::kResume) {
    if (!unfinished) return not_found("there is no unfinished run in " + run_directory_.path() + " to resume");
    if (unfinished->installs != fingerprint_["model"]) LATHE_TRY(check_same_run(*unfinished));
    state_ = *unfinished;
  } else if (unfinished) {
    return Error{Code::kConflict, run_directory_.path() + " holds a run that stopped after " +
                                      std::to_string(unfinished->step) +
                                      " steps; --resume continues it, --restart discards it"};
  }
  return {};
}

// A run may begin with the optimizer state of an earlier one.
std::string Run::begins_with() const {
  const int64_t updates = trainer_.optimizer().updates();
  return updates == 0 ? "no optimizer state" : "the optimizer state of " + std::to_string(updates) + " updates";
}

Status Run::check_same_run(const RunState& unfinished) const {
  for (const auto& [name, mine] : fingerprint_) {
    const auto found = unfinished.settings.find(name);
    const std::string theirs = found == unfinished.settings.end() ? "nothing" : found->second;
    if (theirs == mine || name == kThreads) continue;
    const std::string differs = "the unfinished run in " + run_directory_.path() + " has another ";
    // Of a hash there is nothing to read.
    if (mine.size() == 64) return Error{Code::kConflict, differs + name + "; --restart discards that run"};
    return Error{Code::kConflict,
                 differs + name + ": " + theirs + ", not " + mine + "; use the same, or --restart to discard that run"};
  }
  if (unfinished.step > planned_steps()) {
    return corruption("the unfinished run in " + run_directory_.path() + " has done more steps than there are");
  }
  return {};
}

Result<RunOutcome> Run::execute(RunObserver& observer, const std::function<bool()>& stop) {
  if (begin_ != Begin::kResume) LATHE_TRY(run_directory_.discard());  // also what a discarded run may have left
  if (was_done()) {
    LATHE_TRY(run_directory_.discard());
    return RunOutcome{.end = RunOutcome::End::kWasDone, .version = on_disk_};
  }
  const Status referenced = take_references(observer, stop);
  if (!referenced.ok() && referenced.error().code == Code::kCancelled)
    return RunOutcome{.end = RunOutcome::End::kInterrupted, .steps = state_.step};
  LATHE_TRY(referenced);
  if (begin_ == Begin::kResume) LATHE_TRY(restore());
  saved_step_ = state_.step;
  saved_at_ = Clock::now();

  if (evaluation_ && state_.evaluations.empty()) LATHE_TRY(evaluate(observer));
  while (state_.step < planned_steps() && !out_of_patience()) {
    if (stop()) {
      if (saved_step_ != state_.step) LATHE_TRY(save(observer, /*best=*/false));
      return RunOutcome{.end = RunOutcome::End::kInterrupted, .steps = state_.step};
    }
    LATHE_TRY(step(observer));
    if (evaluation_is_due()) LATHE_TRY(evaluate(observer));
    if (!save_is_due()) continue;
    const Status saved = save(observer, /*best=*/false);
    // The weights in memory are worth more than the chance to resume.
    if (!saved.ok()) observer.warned("the state of the run could not be saved: " + saved.error().message);
  }
  return install(observer);
}

Status Run::take_references(RunObserver& observer, const std::function<bool()>& stop) {
  for (Dataset* set : {&training_, evaluation_}) {
    if (!set || !set->needs_references()) continue;
    const auto batches = LATHE_TRY(data::in_order(set->tokens_per_item(), settings_.plan));
    LATHE_TRY(set->take_references(trainer_, batches, settings_.step, [&](int64_t items) {
      observer.referenced(items, set->items());
      return !stop();
    }));
  }
  return {};
}

Status Run::restore() {
  LATHE_TRY(run_directory_.restore_optimizer(state_.slot, trainer_.optimizer()));
  return run_directory_.restore_weights(state_.slot, store_).at("the weights may be those of two steps now");
}

StepRecord Run::record_of(const StepReport& report) const {
  const kernels::UpdateStats& total = report.commit.total;
  const double rate = settings_.schedule.lr_at(state_.step);
  StepRecord record{.step = state_.step + 1,
                    .epoch = static_cast<double>(items_seen_[state_.step]) / static_cast<double>(training_.items()),
                    .loss = report.loss,
                    .learning_rate = rate,
                    .gradient_norm = report.commit.gradient_norm,
                    .update_norm = std::sqrt(total.intended_squared) / rate,
                    .changed_fraction = total.changed_fraction(),
                    .realised = total.realised_share(),
                    .tokens = report.tokens,
                    .graded_tokens = report.graded_tokens};
  for (const optim::TensorReport& tensor : report.commit.tensors) {
    record.limiter = std::max(record.limiter, tensor.limiter);
    record.limited += tensor.limiter > 1 ? 1 : 0;
  }
  return record;
}

Status Run::step(RunObserver& observer) {
  const auto begin = Clock::now();
  const data::StepBatches& batches = plan_.steps[state_.step];
  StepOptions options = settings_.step;
  options.learning_rate = settings_.schedule.lr_at(state_.step);
  std::vector<Lesson> lessons;
  std::vector<MicroBatch> micro_batches;
  for (const data::ItemBatch& items : batches) lessons.push_back(training_.lesson(items));
  for (const Lesson& lesson : lessons) micro_batches.push_back({lesson.examples, lesson.objective.get()});
  const StepReport report =
      LATHE_TRY(trainer_.step(micro_batches, options).at("step " + std::to_string(state_.step + 1)));
  if (report.stopped) return *report.stopped;
  StepRecord record = record_of(report);
  record.seconds = seconds_since(begin);
  ++state_.step;
  state_.steps.push_back(record);
  observer.stepped(record, report);
  return {};
}

Status Run::evaluate(RunObserver& observer) {
  double sum = 0, size = 0;
  for (const data::ItemBatch& batch : plan_.evaluation) {
    const Lesson lesson = evaluation_->evaluation(batch);
    const auto part = LATHE_TRY(trainer_.evaluate(lesson.examples, settings_.step, *lesson.objective));
    sum += part.loss * part.size;
    size += part.size;
  }
  const Evaluation evaluation{.step = state_.step, .loss = sum / size};
  if (!std::isfinite(evaluation.loss)) return invalid_argument("the loss of the evaluation set is not finite");
  state_.evaluations.push_back(evaluation);
  observer.evaluated(evaluation);
  // The weights before the run are still in the directory; any later best must be kept to be gone back to.
  const bool keep = settings_.patience > 0 && state_.step > 0 && best()->step == state_.step;
  return keep ? save(observer, /*best=*/true) : Status();
}

Status Run::save(RunObserver& observer, bool best) {
  const auto begin = Clock::now();
  observer.saving(state_.step);
  LATHE_TRY(run_directory_.save(state_, store_, trainer_.optimizer(), best));
  saved_step_ = state_.step;
  saved_at_ = Clock::now();
  observer.saved(state_.step, seconds_since(begin));
  return {};
}

bool Run::save_is_due() const {
  if (saved_step_ == state_.step || state_.step == planned_steps()) return false;
  return (settings_.save_steps > 0 && state_.step % settings_.save_steps == 0) ||
         (settings_.save_seconds > 0 && seconds_since(saved_at_) >= settings_.save_seconds);
}

bool Run::evaluation_is_due() const {
  if (!evaluation_) return false;
  if (state_.step == planned_steps()) return true;
  return settings_.evaluate_every > 0 && state_.step % settings_.evaluate_every == 0;
}

const Evaluation* Run::best() const {
  const auto& all = state_.evaluations;
  const auto lowest = std::min_element(all.begin(), all.end(), [](auto& a, auto& b) { return a.loss < b.loss; });
  return lowest == all.end() ? nullptr : &*lowest;
}

bool Run::out_of_patience() const {
  if (settings_.patience == 0 || state_.evaluations.empty()) return false;
  return &state_.evaluations.back() - best() >= settings_.patience;
}

Result<RunOutcome> Run::install(RunObserver& observer) {
  RunOutcome outcome{.steps = state_.step, .installed = state_.step, .version = on_disk_};
  if (settings_.patience > 0 && best()->step != state_.step) {
    outcome.installed = best()->step;
    if (outcome.installed == 0) {
      outcome.end = RunOutcome::End::kNoBetter;
      LATHE_TRY(run_directory_.discard());
      return outcome;
    }
    LATHE_TRY(run_directory_.restore_optimizer(state_.best_slot, trainer_.optimizer()));
    LATHE_TRY(run_directory_.restore_weights(state_.best_slot, store_));
  }
  const auto written = write_result(on_disk_ + outcome.installed);
  if (!written.ok()) {
    if (saved_step_ != state_.step && outcome.installed == state_.step) {
      const Status saved = save(observer, /*best=*/false);
      if (!saved.ok()) observer.warned("the state of the run could not be saved: " + saved.error().message);
    }
    return written.error().at("the result could not be written; --resume goes on from step " +
                              std::to_string(saved_step_));
  }
  outcome.version = written->version;
  outcome.delta_bytes = written->delta_bytes;
  LATHE_TRY(run_directory_.discard());
  return outcome;
}

Result<history::SyncReport> Run::write_result(int64_t version) {
  // The saved run records its result, so that a run killed after this is not mistaken for another model's.
  if (auto saved = LATHE_TRY(run_directory_.read())) {
    saved->installs = LATHE_TRY(weights_hash(store_));
    LATHE_TRY(run_directory_.save_record(*saved));
  }
  const history::Attachment optimizer{.name = history::kOptimizerName,
                                      .write = [&](const history::Attachment::Sink& sink) -> Status {
                                        Forward file(sink);
                                        return optim::write_state(trainer_.optimizer().state(), file);
                                      }};
  history::SyncOptions options{
      .record = {.kind = "train", .note = settings_.note}, .materialize = settings_.materialize, .even_if_equal = true};
  options.attachments.push_back(optimizer);
  return history::sync(env_, directory_, weights::LiveTensors(store_), version, options);
}

}  // namespace lathe::train
