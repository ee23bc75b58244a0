#include "report.h"

#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

namespace lathe::cli {

using Json = nlohmann::ordered_json;

int report(const char* command, bool json, const std::function<Result<Json>()>& work,
           const std::function<void(const Json&)>& print) {
  const Result<Json> result = work();
  if (!result.ok()) {
    std::fprintf(stderr, "lathe %s: %s\n", command, result.error().message.c_str());
    return 1;
  }
  if (json) {
    std::printf("%s\n", result->dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    print(*result);
  }
  return 0;
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
