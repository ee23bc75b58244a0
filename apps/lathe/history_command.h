// What the commands that work on a directory's history share: progress on the terminal, results as JSON, errors.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/result.h"
#include "delta/source.h"
#include "io/env.h"

namespace lathe::cli {

// A bar on standard error that appears when an operation takes more than two seconds, on a terminal only.
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

// Runs `work`; prints its result as JSON, or by `print`, and returns the exit code: 0, or 1 after the error on one
// line.
int report(const char* command, bool json, const std::function<Result<nlohmann::ordered_json>()>& work,
           const std::function<void(const nlohmann::ordered_json&)>& print);

// The address of the `lathe serve` that works on the directory; empty if there is none.
std::string running_server(io::Env& env, const std::string& directory);

std::string mebibytes(uint64_t bytes);    // "12.3 MiB"
std::string local_time(int64_t time_ms);  // "2026-11-25 21:36:02"

}  // namespace lathe::cli
