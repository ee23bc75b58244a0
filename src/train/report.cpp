#include "train/report.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

namespace lathe::train {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kLossHeader =
    "step,epoch,loss,eval_loss,lr,gradient_norm,update_norm,limiter,limited_tensors,changed_fraction,realised_update,"
    "tokens,graded_tokens,seconds,tokens_per_second\n";
constexpr const char* kTensorHeader =
    "step,tensor,gradient_norm,update_norm,limiter,changed_fraction,realised_update\n";
constexpr int64_t kTensorRows = 200'000;  // so many at most, about
constexpr auto kDrawEvery = std::chrono::seconds(30);

template <class... Args>
std::string format(const char* pattern, Args... args) {
  char text[256];
  return {text, static_cast<size_t>(std::snprintf(text, sizeof text, pattern, args...))};
}

// Quoted where a comma or a quote would be read as the format's own.
std::string field(std::string_view text) {
  if (text.find_first_of(",\"\n\r") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

// A new file under `path` that begins with `text`, open for more.
Result<std::unique_ptr<io::WritableFile>> begin_file(io::Env& env, const std::string& path, std::string_view text) {
  auto file = LATHE_TRY(env.create(path + ".lathe-new"));
  LATHE_TRY(file->append(std::as_bytes(std::span(text))));
  LATHE_TRY(file->sync());
  LATHE_TRY(env.rename(path + ".lathe-new", path));
  return file;
}

}  // namespace

Report::Report(io::Env& env, std::string directory, About about, std::function<void(const std::string&)> warn)
    : env_(env),
      directory_(std::move(directory)),
      about_(std::move(about)),
      warn_(std::move(warn)),
      tensors_every_(std::max<int64_t>(1, about_.steps * about_.tensors / kTensorRows)),
      chart_{.title = about_.title, .subtitle = about_.subtitle, .steps = static_cast<double>(about_.steps)},
      drawn_at_(Clock::now()) {}

Result<std::unique_ptr<Report>> Report::begin(io::Env& env, const std::string& directory, About about,
                                              const RunState& done, std::function<void(const std::string&)> warn) {
  std::unique_ptr<Report> report(new Report(env, directory, std::move(about), std::move(warn)));
  LATHE_TRY(report->begin_files(done).at("the report cannot be written"));
  return report;
}

Status Report::begin_files(const RunState& done) {
  LATHE_TRY(io::create_directory_durably(env_, directory_));
  std::string rows = kLossHeader;
  auto evaluation = done.evaluations.begin();
  const auto evaluations_of = [&](int64_t step) {
    for (; evaluation != done.evaluations.end() && evaluation->step <= step; ++evaluation) take_in(*evaluation);
  };
  evaluations_of(0);
  for (const StepRecord& record : done.steps) {
    rows += take_row();
    take_in(record);
    evaluations_of(record.step);
  }
  losses_ = LATHE_TRY(begin_file(env_, directory_ + "/loss.csv", rows));
  const std::string kept = LATHE_TRY(kept_tensor_rows(done.step));
  tensors_ = LATHE_TRY(begin_file(env_, directory_ + "/tensors.csv", kTensorHeader + kept));
  return env_.sync_directory(directory_);
}

// A run that was killed may have listed more steps than it saved, and half a line.
Result<std::string> Report::kept_tensor_rows(int64_t steps) const {
  const std::string path = directory_ + "/tensors.csv";
  if (steps == 0 || !LATHE_TRY(env_.exists(path))) return std::string();
  const std::string text = LATHE_TRY(io::read_text(env_, path));
  const size_t header = std::string_view(kTensorHeader).size();
  if (!text.starts_with(kTensorHeader)) return std::string();
  size_t end = header;
  while (end < text.size()) {
    const size_t line_end = text.find('\n', end);
    int64_t step = 0;
    const auto [rest, error] = std::from_chars(text.data() + end, text.data() + text.size(), step);
    if (line_end == std::string::npos || error != std::errc() || *rest != ',' || step > steps) break;
    end = line_end + 1;
  }
  return text.substr(header, end - header);
}

void Report::take_in(const StepRecord& record) {
  pending_step_ = record;
  const auto x = static_cast<double>(record.step);
  chart_.training.push_back({x, record.loss});
  chart_.rate.push_back({x, record.learning_rate});
}

void Report::take_in(const Evaluation& evaluation) {
  pending_evaluation_ = evaluation;
  chart_.evaluation.push_back({static_cast<double>(evaluation.step), evaluation.loss});
}

std::string Report::take_row() {
  if (!pending_step_ && !pending_evaluation_) return {};
  const std::string evaluated = pending_evaluation_ ? format("%.9g", pending_evaluation_->loss) : "";
  std::string row;
  if (pending_step_) {
    const StepRecord& r = *pending_step_;
    row = format("%ld,%.6g,%.9g,%s,%.9g,%.6g,%.6g,%.6g,%ld", static_cast<long>(r.step), r.epoch, r.loss,
                 evaluated.c_str(), r.learning_rate, r.gradient_norm, r.update_norm, r.limiter,
                 static_cast<long>(r.limited));
    row += format(",%.6g,%.6g,%ld,%ld,%.4g,%.4g\n", r.changed_fraction, r.realised, static_cast<long>(r.tokens),
                  static_cast<long>(r.graded_tokens), r.seconds,
                  r.seconds > 0 ? static_cast<double>(r.tokens) / r.seconds : 0);
  } else {
    row = format("%ld,0,,%s,,,,,,,,,,,\n", static_cast<long>(pending_evaluation_->step), evaluated.c_str());
  }
  pending_step_.reset();
  pending_evaluation_.reset();
  return row;
}

Status Report::write_pending() {
  const std::string row = take_row();
  return row.empty() ? Status() : losses_->append(std::as_bytes(std::span(row)));
}

Status Report::write_tensors(const StepRecord& record, const StepReport& report) {
  if ((record.step - 1) % tensors_every_ != 0 && record.step != about_.steps) return {};
  std::string rows;
  for (const optim::TensorReport& tensor : report.commit.tensors) {
    rows += std::to_string(record.step) + "," + field(tensor.name);
    rows += format(",%.6g,%.6g,%.6g,%.6g,%.6g\n", tensor.gradient_norm, tensor.update_norm, tensor.limiter,
                   tensor.stats.changed_fraction(), tensor.stats.realised_share());
  }
  return tensors_->append(std::as_bytes(std::span(rows)));
}

void Report::stepped(const StepRecord& record, const StepReport& report) {
  attempt([&]() -> Status {
    LATHE_TRY(write_pending());
    take_in(record);
    LATHE_TRY(write_tensors(record, report));
    return Clock::now() - drawn_at_ < kDrawEvery ? Status() : draw();
  });
}

// After the step that it belongs to; before the first step in a separate row.
void Report::evaluated(const Evaluation& evaluation) {
  take_in(evaluation);
}

void Report::saving(int64_t /*step*/) {
  attempt([&] { return sync(); });
}

// The row that still waits is not lost: loss.csv is rebuilt from the saved state.
Status Report::sync() {
  LATHE_TRY(losses_->sync());
  return tensors_->sync();
}

void Report::finish() {
  attempt([&]() -> Status {
    LATHE_TRY(write_pending());
    LATHE_TRY(sync());
    return draw();
  });
}

Status Report::draw() {
  drawn_at_ = Clock::now();
  const std::string svg = LATHE_TRY(plot::draw_svg(chart_)), png = LATHE_TRY(plot::draw_png(chart_));
  LATHE_TRY(io::write_text_atomically(env_, directory_ + "/loss.svg", svg));
  return io::write_text_atomically(env_, directory_ + "/loss.png", png);
}

void Report::attempt(const std::function<Status()>& work) {
  if (failed_) return;
  const Status done = work();
  if (done.ok()) return;
  failed_ = true;
  warn_("the report in " + directory_ + " ends here: " + done.error().message);
}

}  // namespace lathe::train
