// Sizes, numbers and shapes as people read them.
//
// Threads: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace lathe {

std::string mebibytes(uint64_t bytes);                   // "12.3 MiB"
std::string decimal(double value, int digits = 2);       // "1.23"
std::string shape_text(std::span<const int64_t> shape);  // "[2, 3]"

}  // namespace lathe
