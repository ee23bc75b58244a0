#include "value_checks.h"

#include <cmath>
#include <utility>

#include "config/settings.h"

namespace lathe::cli {
namespace {

// Nothing if `text` may be the value; a validator must not change it.
std::string complaint(const config::Setting& rule, const std::string& text) {
  const Status set = rule.set(text);
  return set.ok() ? "" : set.error().message;
}

std::string range(const std::string& lowest, const std::string& highest, bool bounded) {
  return bounded ? "in [" + lowest + " - " + highest + "]" : lowest + " or more";
}

std::string short_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

}  // namespace

CLI::Validator integer(int64_t lowest, int64_t highest) {
  const bool bounded = highest != std::numeric_limits<int64_t>::max();
  const auto check = [=](const std::string& text) {
    int64_t value = 0;
    const double most = bounded ? static_cast<double>(highest) : std::numeric_limits<double>::infinity();
    return complaint({.value = &value, .lowest = static_cast<double>(lowest), .highest = most}, text);
  };
  return CLI::Validator(check, range(std::to_string(lowest), std::to_string(highest), bounded));
}

CLI::Validator number(double lowest, double highest) {
  const auto check = [=](const std::string& text) {
    double value = 0;
    return complaint({.value = &value, .lowest = lowest, .highest = highest}, text);
  };
  return CLI::Validator(check, range(short_text(lowest), short_text(highest), std::isfinite(highest)));
}

CLI::Validator one_of(std::vector<std::string> words) {
  std::string listed;
  for (const std::string& word : words) listed += (listed.empty() ? "" : "|") + word;
  const auto check = [words = std::move(words)](const std::string& text) {
    std::string value;
    return complaint({.value = &value, .choices = words}, text);
  };
  return CLI::Validator(check, listed);
}

CLI::Validator not_empty() {
  return CLI::Validator([](const std::string& text) { return text.empty() ? "must not be empty" : ""; }, "");
}

}  // namespace lathe::cli
