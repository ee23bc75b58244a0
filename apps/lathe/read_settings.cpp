#include "read_settings.h"

#include <cstdio>

namespace lathe::cli {

bool read_settings(const char* command, config::Sources& sources) {
  const Status read = sources.read();
  for (const std::string& warning : sources.warnings())
    std::fprintf(stderr, "lathe %s: warning: %s\n", command, warning.c_str());
  if (!read.ok()) std::fprintf(stderr, "lathe %s: %s\n", command, read.error().message.c_str());
  return read.ok();
}

}  // namespace lathe::cli
