#include "progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "base/units.h"

namespace lathe::cli {

ProgressBar::ProgressBar() : terminal_(isatty(STDERR_FILENO) != 0) {}

ProgressBar::~ProgressBar() {
  if (visible_) std::fprintf(stderr, "\r\x1b[K");
}

delta::Progress ProgressBar::callback() {
  return [this](std::string_view phase, uint64_t done, uint64_t total) { show(phase, done, total); };
}

void ProgressBar::show(std::string_view phase, uint64_t done, uint64_t total) {
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || total == 0 || now - begin_ < std::chrono::seconds(2) ||
      now - shown_ < std::chrono::milliseconds(100))
    return;
  shown_ = now;
  visible_ = true;
  constexpr uint64_t kWidth = 24;
  const uint64_t filled = kWidth * std::min(done, total) / total;
  std::fprintf(stderr, "\r\x1b[K[%s%s] %.*s %s of %s", std::string(filled, '#').c_str(),
               std::string(kWidth - filled, '.').c_str(), static_cast<int>(phase.size()), phase.data(),
               mebibytes(done).c_str(), mebibytes(total).c_str());
}

}  // namespace lathe::cli
