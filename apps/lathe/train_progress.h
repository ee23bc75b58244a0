// What `lathe train` says while it runs: a line that is rewritten in place on a terminal, and printed now and then
// elsewhere. All of it goes to standard error.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train/run.h"

namespace lathe::cli {

// What each step must compute at least, and how many operations a second the device's matrix products reach.
struct StepLimits {
  std::vector<double> operations;  // none: shares are not shown
  double per_second = 0;
};

class TrainProgress final : public train::RunObserver {
 public:
  enum class Detail { kNone, kBar, kEveryStep };

  TrainProgress(Detail detail, int64_t steps, int64_t done, StepLimits limits = {});

  // Before the first step, which may take long: what is shown until it is done.
  void begin();

  void referenced(int64_t items, int64_t of) override;
  void stepped(const train::StepRecord& record, const train::StepReport& report) override;
  void evaluated(const train::Evaluation& evaluation) override;
  void saved(int64_t step, double seconds) override;
  void warned(const std::string& message) override;

 private:
  void show(const std::string& line, bool last);
  void end_line();  // so that what comes next begins one

  Detail detail_;
  StepLimits limits_;
  int64_t steps_, at_begin_;
  bool terminal_;
  bool open_ = false;  // the cursor is at the end of a line that will be rewritten
  double seconds_ = 0;
  int64_t tokens_ = 0;
  std::optional<double> evaluation_;
};

}  // namespace lathe::cli
