// Reading a command's settings, and saying what is wrong with them.
#pragma once

#include "config/sources.h"

namespace lathe::cli {

// False after an error on standard error; warnings go there too.
bool read_settings(const char* command, config::Sources& sources);

}  // namespace lathe::cli
