// A bar on standard error that appears when an operation takes more than two seconds, on a terminal only.
//
// Threads: the callback on one thread at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <string_view>

#include "delta/source.h"

namespace lathe::cli {

class ProgressBar {
 public:
  ProgressBar();
  ~ProgressBar();
  delta::Progress callback();

 private:
  void show(std::string_view phase, uint64_t done, uint64_t total);

  const bool terminal_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point shown_;
  bool visible_ = false;
};

}  // namespace lathe::cli
