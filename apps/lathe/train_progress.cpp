#include "train_progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace lathe::cli {
namespace {

template <class... Args>
std::string format(const char* pattern, Args... args) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, args...);
  return text;
}

std::string bar(int64_t done, int64_t of) {
  constexpr int64_t kWidth = 24;
  const auto filled = static_cast<size_t>(kWidth * done / std::max<int64_t>(of, 1));
  return "[" + std::string(filled, '#') + std::string(kWidth - filled, '.') + "]";
}

// Whether a line that cannot be rewritten is due: some twenty of them in all.
bool now_and_then(int64_t done, int64_t of) {
  return done == of || done % std::max<int64_t>(1, of / 20) == 0;
}

}  // namespace

TrainProgress::TrainProgress(Detail detail, int64_t steps, int64_t done, StepLimits limits)
    : detail_(detail),
      limits_(std::move(limits)),
      steps_(steps),
      at_begin_(done),
      terminal_(isatty(STDERR_FILENO) != 0) {}

void TrainProgress::show(const std::string& line, bool last) {
  const bool rewrite = terminal_ && detail_ == Detail::kBar;
  std::fprintf(stderr, "%s%s%s", rewrite ? "\r\x1b[K" : "", line.c_str(), rewrite && !last ? "" : "\n");
  open_ = rewrite && !last;
}

void TrainProgress::end_line() {
  if (open_) std::fputs("\n", stderr);
  open_ = false;
}

void TrainProgress::begin() {
  if (detail_ == Detail::kNone || at_begin_ >= steps_) return;
  const std::string text = format("computing step %ld of %ld; its time says how long the run takes",
                                  static_cast<long>(at_begin_ + 1), static_cast<long>(steps_));
  show(detail_ == Detail::kBar ? bar(at_begin_, steps_) + " " + text : text, false);
}

void TrainProgress::referenced(int64_t items, int64_t of) {
  if (detail_ == Detail::kNone || (!terminal_ && items != of)) return;
  show(bar(items, of) + format(" reference %ld/%ld", static_cast<long>(items), static_cast<long>(of)), items == of);
}

void TrainProgress::stepped(const train::StepRecord& record, const train::StepReport& /*report*/) {
  tokens_ += record.tokens;
  seconds_ += record.seconds;
  const bool last = record.step == steps_;
  if (detail_ == Detail::kNone) return;
  if (detail_ == Detail::kBar && !terminal_ && !now_and_then(record.step, steps_)) return;
  const double per_step = seconds_ / static_cast<double>(record.step - at_begin_);
  std::string line = detail_ == Detail::kBar ? bar(record.step, steps_) + " " : "";
  line += format("step %ld/%ld  loss %.4f", static_cast<long>(record.step), static_cast<long>(steps_), record.loss);
  if (evaluation_) line += format("  eval %.4f", *evaluation_);
  if (detail_ == Detail::kEveryStep) {
    line += format("  lr %.2e  |g| %.3g  changed %.1f %%", record.learning_rate, record.gradient_norm,
                   100 * record.changed_fraction);
    line += format("  %.0f tokens/s", static_cast<double>(record.tokens) / record.seconds);
    if (!limits_.operations.empty()) {
      const double operations = limits_.operations.at(record.step - 1);
      line += format("  %.0f %% of the limit", 100 * operations / record.seconds / limits_.per_second);
    }
  } else {
    line += format("  %.0f tokens/s", static_cast<double>(tokens_) / seconds_);
  }
  line += format("  %.0f s left", per_step * static_cast<double>(steps_ - record.step));
  show(line, last);
}

void TrainProgress::evaluated(const train::Evaluation& evaluation) {
  evaluation_ = evaluation.loss;
  if (detail_ == Detail::kNone) return;
  end_line();
  std::fprintf(stderr, "evaluation after step %ld: loss %.4f\n", static_cast<long>(evaluation.step), evaluation.loss);
  if (evaluation.step == at_begin_) begin();
}

void TrainProgress::saved(int64_t step, double seconds) {
  if (detail_ != Detail::kEveryStep) return;
  std::fprintf(stderr, "state of step %ld saved in %.1f s\n", static_cast<long>(step), seconds);
}

void TrainProgress::warned(const std::string& message) {
  end_line();
  std::fprintf(stderr, "lathe train: warning: %s\n", message.c_str());
}

}  // namespace lathe::cli
