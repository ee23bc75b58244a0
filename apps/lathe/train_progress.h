// What `lathe train` says while it runs: a line that is rewritten in place on a terminal, and printed now and then
// elsewhere. All of it goes to standard error.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train/run.h"

namespace lathe::cli {

class TrainProgress final : public train::RunObserver {
 public:
  enum class Detail { kNone, kBar, kEveryStep };

  TrainProgress(Detail detail, int64_t steps, int64_t done);

  void referenced(int64_t items, int64_t of) override;
  void stepped(const train::StepRecord& record, const train::StepReport& report) override;
  void evaluated(const train::Evaluation& evaluation) override;
  void saved(int64_t step, double seconds) override;
  void warned(const std::string& message) override;

  // Share of the machine's limit, for every step's line: operations per token of a step, and operations per second of
  // a matrix product here.
  void set_limit(double operations_per_token, double operations_per_second);

  // Of the last step of this process.
  const std::vector<optim::TensorReport>& tensors() const { return tensors_; }

 private:
  void show(const std::string& line, bool last);
  void end_line();  // so that what comes next begins one

  Detail detail_;
  int64_t steps_, at_begin_;
  bool terminal_;
  bool open_ = false;  // the cursor stands behind a line that will be rewritten
  double seconds_ = 0;
  int64_t tokens_ = 0;
  double operations_per_token_ = 0, operations_per_second_ = 0;
  std::optional<double> evaluation_;
  std::vector<optim::TensorReport> tensors_;
};

}  // namespace lathe::cli
