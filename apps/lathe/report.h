// How a command says what it did: its result as JSON or in words, or the error on one line.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"

namespace lathe::cli {

// Runs `work`; prints its result as JSON, or by `print`, and returns the exit code: 0, or 1 after the error on one
// line.
int report(const char* command, bool json, const std::function<Result<nlohmann::ordered_json>()>& work,
           const std::function<void(const nlohmann::ordered_json&)>& print);

std::string local_time(int64_t time_ms);  // "2026-11-25 21:36:02"

}  // namespace lathe::cli
