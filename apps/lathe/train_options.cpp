#include "train_options.h"
#include "value_checks.h"

#include <CLI/CLI.hpp>

namespace lathe::cli {
namespace {

void add_data_options(CLI::App& app, TrainOptions& o) {
  auto& plan = o.run.plan;
  app.add_option("MODEL_DIR", o.directory, "The model directory; it is changed in place, once, at the end")->required();
  app.add_option(
         "DATA", o.data,
         "JSONL. sft: {\"messages\": [...]} per line, with optional \"weight\" per assistant message. "
         "dpo: {\"input\": {\"messages\": [...]}, \"preferred_output\": [...], \"non_preferred_output\": [...]}")
      ->required();
  app.add_option("--batch", plan.batch, "Conversations (dpo: pairs) per micro-batch, at most")
      ->check(integer(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--max-tokens", plan.max_tokens, "Tokens per micro-batch, at most; 0: no limit")
      ->check(integer(0))
      ->capture_default_str();
  app.add_option("--accumulate", plan.accumulate, "Micro-batches per step")
      ->check(integer(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--epochs", plan.epochs, "Passes over the data")->check(integer(1, 10000))->capture_default_str();
  app.add_option("--max-steps", plan.max_steps, "Stop after this many; 0: all")
      ->check(integer(0))
      ->capture_default_str();
  app.add_option("--seed", plan.seed, "Seed of data order, projections and rounding")
      ->check(integer(0))
      ->capture_default_str();
}

void add_objective_options(CLI::App& app, TrainOptions& o) {
  auto& objective = o.run.objective;
  app.add_option("--method", o.method, "sft: supervised fine-tuning; dpo: direct preference optimisation on pairs")
      ->check(one_of({"sft", "dpo"}))
      ->capture_default_str();
  app.add_option("--beta", objective.beta, "dpo: how strongly the model is held to the reference")
      ->check(number(1e-6, 1e3))
      ->capture_default_str();
  app.add_option("--kl", objective.kl, "sft: coefficient of the KL divergence from the initial weights; 0: none")
      ->check(number(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--kl-tokens", objective.kl_tokens, "--kl: most probable tokens stored per graded token")
      ->check(integer(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--context", o.context, "frozen: no gradient through context; exact: through everything")
      ->check(one_of({"frozen", "exact"}))
      ->capture_default_str();
}

void add_optimizer_options(CLI::App& app, TrainOptions& o) {
  auto& optimizer = o.run.optimizer;
  auto& schedule = o.run.schedule;
  app.add_option("--lr", schedule.peak, "Learning rate, as for AdamW")->check(number(1e-9, 1.0))->capture_default_str();
  app.add_option("--schedule", o.schedule, "Learning rate after the warm-up: constant, linear or cosine")
      ->check(one_of({"constant", "linear", "cosine"}))
      ->capture_default_str();
  app.add_option("--warmup", schedule.warmup_steps, "Steps in which the learning rate rises to --lr")
      ->check(integer(0))
      ->capture_default_str();
  app.add_option("--final-lr", schedule.final_fraction, "Where linear and cosine end, as a fraction of --lr")
      ->check(number(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--optimizer", o.optimizer, "apollo_mini, apollo, adamw or sgd")
      ->check(one_of({"apollo_mini", "apollo", "adamw", "sgd"}))
      ->capture_default_str();
  app.add_option("--rank", o.rank, "Rank of APOLLO's projection; default 1 for apollo_mini, 128 for apollo")
      ->check(integer(1));
  app.add_option("--scale", o.scale, "Square of APOLLO's scale factor; default: such that --lr means AdamW's")
      ->check(number(1e-9));
  app.add_option("--weight-decay", optimizer.weight_decay, "Decoupled weight decay of matrices")
      ->check(number(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--rounding", o.rounding,
                 "Rounding of bf16 weights: stochastic; nearest; or, for studies on a CPU, shadow: fp32 copies take "
                 "the updates")
      ->check(one_of({"stochastic", "nearest", "shadow"}))
      ->capture_default_str();
  app.add_option("--gradients", o.gradients,
                 "factored: memory grows with graded tokens; streaming: each layer is updated in turn; dense: 4 "
                 "bytes per weight")
      ->check(one_of({"factored", "streaming", "dense"}))
      ->capture_default_str();
  app.add_flag("--freeze-embeddings", o.freeze_embeddings, "Leave embedding and head as they are");
}

void add_run_options(CLI::App& app, TrainOptions& o) {
  auto* file = app.add_option("--eval", o.evaluation, "An evaluation set, in DATA's format");
  app.add_option("--eval-fraction", o.evaluation_fraction, "Hold this part of DATA out for evaluation")
      ->check(number(0.0, 0.9))
      ->excludes(file);
  app.add_option("--eval-every", o.run.evaluate_every, "Steps between evaluations; 0: only at both ends")
      ->check(integer(0))
      ->capture_default_str();
  app.add_option("--patience", o.run.patience,
                 "Stop after this many evaluations without a new best, and keep the best weights; 0: never")
      ->check(integer(0))
      ->capture_default_str();
  app.add_option("--save-every", o.run.save_steps, "Steps between saved states to resume from; 0: by time only")
      ->check(integer(0))
      ->capture_default_str();
  app.add_option("--save-seconds", o.run.save_seconds, "Seconds between saved states; 0: by steps only")
      ->check(number(0))
      ->capture_default_str();
  auto* resume = app.add_flag("--resume", o.resume, "Continue an unfinished run where its last saved state left it");
  app.add_flag("--restart", o.restart, "Discard an unfinished run and start over")->excludes(resume);
  app.add_flag("--keep-optimizer", o.keep_optimizer,
               "Begin with the optimizer state of the last finished `lathe train` instead of none");
  app.add_flag("--materialize", o.run.materialize, "Replace shards that are symbolic links by copies");
  app.add_option("--device", o.device, "auto (a GPU if there is one), cpu, cuda or cuda:N")
      ->envname("LATHE_DEVICE")
      ->capture_default_str();
  app.add_option("--report", o.report, "Write loss.csv, tensors.csv, loss.svg and loss.png into this directory")
      ->check(not_empty());
  app.add_flag("--dry-run", o.dry_run, "Only print what would be trained, and what memory and time it would take");
  app.add_flag("--quiet", o.quiet, "No progress bar");
  app.add_flag("--verbose", o.verbose, "A line per step, with the share of this machine's measured limit");
  app.add_flag("--json", o.json, "The outcome as one JSON object on standard output");
}

}  // namespace

void add_train_options(CLI::App& app, TrainOptions& options) {
  options.run.schedule.peak = 2e-5;
  add_data_options(app, options);
  add_objective_options(app, options);
  add_optimizer_options(app, options);
  add_run_options(app, options);
}

Result<train::RunSettings> TrainOptions::settings() const {
  train::RunSettings settings = run;
  settings.objective.preferences = method == "dpo";
  settings.optimizer.method = LATHE_TRY(optim::parse_method(optimizer));
  settings.optimizer.rank = rank;
  settings.optimizer.scale = scale;
  settings.optimizer.rounding = LATHE_TRY(optim::parse_rounding(rounding));
  settings.optimizer.train_embeddings = !freeze_embeddings;
  settings.note = data;
  settings.optimizer.seed = settings.plan.seed;
  settings.schedule.decay = LATHE_TRY(optim::parse_decay(schedule));
  settings.step.context = context == "exact" ? data::ContextMode::kExact : data::ContextMode::kFrozen;
  settings.step.gradients = gradients == "streaming" ? train::GradientPath::kStreaming
                            : gradients == "dense"   ? train::GradientPath::kDense
                                                     : train::GradientPath::kFactored;
  return settings;
}

}  // namespace lathe::cli
