// Report: what a training run writes for people, in a directory of their choice: loss.csv and tensors.csv, which
// grow step by step, and loss.svg and loss.png, redrawn from time to time.
//
// A resumed run's report has the rows of one that was never interrupted: those of steps after the state that it
// resumes from are removed.
// Threads: that of the run.
// Durability: rows are durable before the state of their step is (RunObserver::saving). A failure never ends a run: it
// is reported once, and the report ends there.
// Format page: docs/formats/training_report.md
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "io/env.h"
#include "plot/loss_chart.h"
#include "train/run.h"

namespace lathe::train {

class Report final : public RunObserver {
 public:
  struct About {
    std::string title, subtitle;  // of the picture
    int64_t steps = 0;            // planned
    int64_t tensors = 0;          // of the model: says how often a step's tensors are listed
  };

  // Makes the directory if it is not there. Files of an earlier report there are replaced, but for the rows of
  // tensors.csv that belong to the steps in `done`. Refuses a directory that cannot be written.
  static Result<std::unique_ptr<Report>> begin(io::Env& env, const std::string& directory, About about,
                                               const RunState& done,
                                               std::function<void(const std::string& message)> warn);

  void stepped(const StepRecord& record, const StepReport& report) override;
  void evaluated(const Evaluation& evaluation) override;
  void saving(int64_t step) override;

  // The last row and the pictures, durable. Call it when the run is over, however it ended.
  void finish();

 private:
  Report(io::Env& env, std::string directory, About about, std::function<void(const std::string&)> warn);

  Status begin_files(const RunState& done);
  Result<std::string> kept_tensor_rows(int64_t steps) const;
  void take_in(const StepRecord& record);
  void take_in(const Evaluation& evaluation);
  std::string take_row();  // what is pending, as a line
  Status write_pending();
  Status write_tensors(const StepRecord& record, const StepReport& report);
  Status sync();
  Status draw();
  void attempt(const std::function<Status()>& work);

  io::Env& env_;
  const std::string directory_;
  const About about_;
  std::function<void(const std::string&)> warn_;
  const int64_t tensors_every_;  // steps between two lists of tensors
  std::unique_ptr<io::WritableFile> losses_, tensors_;
  plot::LossChart chart_;
  // A step and the evaluation after it are one row, so a row waits until it is clear that there is none.
  std::optional<StepRecord> pending_step_;
  std::optional<Evaluation> pending_evaluation_;
  std::chrono::steady_clock::time_point drawn_at_;
  bool failed_ = false;
};

}  // namespace lathe::train
