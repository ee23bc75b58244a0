#include "history_command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "delta/paths.h"

namespace lathe::cli {

using Json = nlohmann::ordered_json;

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

int report(const char* command, bool json, const std::function<Result<Json>()>& work,
           const std::function<void(const Json&)>& print) {
  const Result<Json> result = work();
  if (!result.ok()) {
    std::fprintf(stderr, "lathe %s: %s\n", command, result.error().message.c_str());
    return 1;
  }
  if (json) {
    std::printf("%s\n", result->dump(2).c_str());
  } else {
    print(*result);
  }
  return 0;
}

std::string running_server(io::Env& env, const std::string& directory) {
  const delta::Paths paths(directory);
  const auto lock = env.lock(paths.owner_lock, io::IfLocked::kFail);
  if (lock.ok() || lock.error().code != Code::kConflict) return "";
  const auto text = io::read_text(env, paths.server);
  if (!text.ok()) return "";
  const Json json = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  return json.is_object() && json.contains("url") && json["url"].is_string() ? json["url"].get<std::string>() : "";
}

std::string mebibytes(uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

std::string local_time(int64_t time_ms) {
  const std::time_t seconds = time_ms / 1000;
  std::tm parts{};
  localtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts);
  return text;
}

}  // namespace lathe::cli
