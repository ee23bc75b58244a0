#include "base/memory.h"

#include <fstream>
#include <string>

namespace lathe {
namespace {

// "NAME:   123 kB" in one of the files of /proc.
int64_t kibibytes_of(const char* file, const std::string& name) {
  std::ifstream lines(file);
  for (std::string word; lines >> word;) {
    int64_t kibibytes = 0;
    if (word == name && lines >> kibibytes) return kibibytes * 1024;
  }
  return 0;
}

}  // namespace

int64_t resident_bytes() {
  return kibibytes_of("/proc/self/status", "VmRSS:");
}

int64_t peak_resident_bytes() {
  return kibibytes_of("/proc/self/status", "VmHWM:");
}

int64_t available_bytes() {
  return kibibytes_of("/proc/meminfo", "MemAvailable:");
}

}  // namespace lathe
