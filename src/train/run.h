// Run: a whole fine-tuning run over a data set, from a plan of steps to an updated model directory.
//
// Everything a step depends on is the plan (data/plan.h), the weights, the optimizer's state and the step's number, so
// a run that was killed and resumed ends in the same bits as one that was not. The model directory is written once, at
// the end; until then everything durable lies in .lathe/train (run_state.h).
//
// Threads: one, which holds the directory's lock and is the only one to touch the weights.
// Durability: what execute() says. Exceptions of torch become errors in Trainer.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "data/plan.h"
#include "history/sync.h"
#include "io/env.h"
#include "optim/schedule.h"
#include "train/dataset.h"
#include "train/run_state.h"
#include "train/trainer.h"

namespace lathe::train {

struct RunSettings {
  ObjectiveSettings objective;
  data::PlanOptions plan;
  optim::OptimizerConfig optimizer;
  optim::Schedule schedule;    // `steps` is set from the plan
  StepOptions step;            // its learning rate is the schedule's
  int64_t evaluate_every = 0;  // steps; 0: only before the first and after the last
  int64_t patience = 0;    // evaluations without a new best before the run stops; 0: never, and the last weights stay
  int64_t save_steps = 0;  // steps between saved states; 0: by time only
  double save_seconds = 600;  // seconds between saved states; 0: by steps only
  std::string note;           // of the version that the run makes, for people
  bool materialize = false;   // replace shards that are symbolic links by copies, instead of refusing them

  Status validate() const;  // all but the schedule, which needs a plan
  // All that the result depends on, for comparison with those of an unfinished run.
  std::map<std::string, std::string> fingerprint() const;
};

// Which items each step of a run sees.
struct RunPlan {
  std::vector<data::StepBatches> steps;
  std::vector<data::ItemBatch> evaluation;
};
// Refuses, by name, settings and data that cannot work together; sets the schedule's number of steps.
Result<RunPlan> plan_run(RunSettings& settings, const Dataset& training, const Dataset* evaluation);

// What happens, as it happens.
class RunObserver {
 public:
  virtual ~RunObserver() = default;
  virtual void referenced(int64_t /*items*/, int64_t /*of*/) {}
  virtual void stepped(const StepRecord& /*record*/, const StepReport& /*report*/) {}
  virtual void evaluated(const Evaluation& /*evaluation*/) {}
  // Before a state becomes durable: what an observer keeps of the steps so far should be durable first.
  virtual void saving(int64_t /*step*/) {}
  virtual void saved(int64_t /*step*/, double /*seconds*/) {}
  virtual void warned(const std::string& /*message*/) {}
};

struct RunOutcome {
  enum class End {
    kDone,         // all steps, or early stop: the directory holds the result
    kInterrupted,  // as asked; the state is saved, the directory is unchanged
    kNoBetter,     // with patience, and nothing was better than the weights before the run: the directory is unchanged
    kWasDone,      // an earlier process had installed the result, and was killed before it could say so
  };
  End end = End::kDone;
  int64_t steps = 0;         // done in all
  int64_t installed = 0;     // the step whose weights the directory holds; 0: those before the run
  int64_t version = 0;       // of the directory
  uint64_t delta_bytes = 0;  // of the version's delta file
};

class Run {
 public:
  // All references outlive the run. `data_hashes` name what the data sets were read from. `store` is what `trainer`
  // trains; it holds the directory's weights.
  Run(io::Env& env, std::string directory, weights::WeightStore& store, Trainer& trainer, RunSettings settings,
      Dataset& training, Dataset* evaluation, const std::map<std::string, std::string>& data_hashes);

  enum class Begin {
    kNew,      // refused with kConflict if there is an unfinished run
    kRestart,  // an unfinished run is discarded, by execute()
    kResume,   // refused, by name, if there is none or if it differs in anything that its result depends on
  };
  // Plans the steps; refuses settings and data that cannot work. Changes nothing.
  Status prepare(Begin begin);
  int64_t planned_steps() const { return std::ssize(plan_.steps); }
  int64_t done_steps() const { return state_.step; }
  const RunPlan& plan() const { return plan_; }
  // Whether the directory holds the result already: an earlier process was killed before it could say so.
  bool was_done() const { return begin_ == Begin::kResume && state_.installs == fingerprint_.at("model"); }

  // To the end, or until `stop` returns true between two steps. Durable on return. An error leaves the directory as it
  // was, and the last saved state.
  Result<RunOutcome> execute(RunObserver& observer, const std::function<bool()>& stop);

  const RunState& state() const { return state_; }

 private:
  std::string begins_with() const;
  Status find_unfinished();
  Status check_same_run(const RunState& unfinished) const;
  Status take_references(RunObserver& observer, const std::function<bool()>& stop);
  Status restore();
  StepRecord record_of(const StepReport& report) const;  // of the step at hand, but for its time
  Status step(RunObserver& observer);
  Status evaluate(RunObserver& observer);
  Status save(RunObserver& observer, bool best);
  bool save_is_due() const;
  bool evaluation_is_due() const;
  bool out_of_patience() const;
  const Evaluation* best() const;  // the first of the lowest loss; null before the first
  Result<RunOutcome> install(RunObserver& observer);
  Result<history::SyncReport> write_result(int64_t version);

  io::Env& env_;
  const std::string directory_;
  weights::WeightStore& store_;
  Trainer& trainer_;
  RunSettings settings_;
  Dataset& training_;
  Dataset* evaluation_;
  RunDirectory run_directory_;
  std::map<std::string, std::string> fingerprint_;
  RunPlan plan_;
  std::vector<int64_t> items_seen_;  // after each step of the plan
  int64_t on_disk_ = 0;              // the directory's version
  Begin begin_ = Begin::kNew;
  RunState state_;
  int64_t saved_step_ = 0;
  std::chrono::steady_clock::time_point saved_at_;
};

}  // namespace lathe::train
