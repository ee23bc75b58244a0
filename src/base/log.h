// The logger: one line per event on standard error, "time level message".
//
// Threads: any; a line is written with one call and never interleaves with another.
#pragma once

#include <string_view>

namespace lathe::log {

enum class Level { kDebug, kInfo, kWarning, kError, kOff };

// Lines below this level are dropped. Default kInfo. Set once, before threads start.
void set_level(Level level);

void debug(std::string_view message);
void info(std::string_view message);
void warning(std::string_view message);
void error(std::string_view message);

}  // namespace lathe::log
