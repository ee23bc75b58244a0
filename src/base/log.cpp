#include "base/log.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <string>

namespace lathe::log {
namespace {

std::atomic<Level> minimum{Level::kInfo};

void write_line(Level level, const char* name, std::string_view message) {
  if (level < minimum.load(std::memory_order_relaxed)) return;
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const int milliseconds =
      static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char stamp[48];
  std::snprintf(stamp, sizeof stamp, "%02d:%02d:%02d.%03d", utc.tm_hour, utc.tm_min, utc.tm_sec, milliseconds);
  std::string line = std::string(stamp) + " " + name + " " + std::string(message) + "\n";
  // One write per line keeps lines of several threads whole. Nothing useful can be done when it fails.
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace

void set_level(Level level) {
  minimum.store(level, std::memory_order_relaxed);
}

void debug(std::string_view message) {
  write_line(Level::kDebug, "debug", message);
}
void info(std::string_view message) {
  write_line(Level::kInfo, "info ", message);
}
void warning(std::string_view message) {
  write_line(Level::kWarning, "warn ", message);
}
void error(std::string_view message) {
  write_line(Level::kError, "error", message);
}

}  // namespace lathe::log
