// What the value of an option may be: the same rules, and the same words when they are broken, as for settings.
//
// Threads: one.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace lathe::cli {

// A whole number from `lowest` to `highest`.
CLI::Validator integer(int64_t lowest, int64_t highest = std::numeric_limits<int64_t>::max());
// A finite number from `lowest` to `highest`.
CLI::Validator number(double lowest, double highest = std::numeric_limits<double>::infinity());
CLI::Validator one_of(std::vector<std::string> words);
CLI::Validator not_empty();

}  // namespace lathe::cli
