// What every long-running command of Lathe does around its work: signals, recovery at the start, telling others where
// it is.
//
// Threads: Signals is made on the main thread before any other thread starts; everything else there too.
#pragma once

#include <signal.h>

#include <cstdint>
#include <string>

#include "base/result.h"
#include "io/env.h"

namespace lathe::daemon {

// Blocks SIGTERM and SIGINT for this thread and all it starts, so that wait() alone sees them.
class Signals {
 public:
  Signals();
  int wait() const;
  // A second signal means now: the default action ends the process.
  void release() const;

 private:
  sigset_t set_;
};

// Finishes what a crash interrupted; the version that the directory then holds.
Result<int64_t> recovered_version(io::Env& env, const std::string& directory);

// The file that tells `lathe sync MODEL_DIR` where to ask, while it lives. Not worth failing for: --server says it as
// well.
class Announcement {
 public:
  Announcement(io::Env& env, const std::string& directory, const std::string& host, int port);
  ~Announcement();
  Announcement(const Announcement&) = delete;
  Announcement& operator=(const Announcement&) = delete;

 private:
  io::Env& env_;
  std::string path_;
};

// `served_name`, or, if that is empty, the last component of the directory's path.
std::string model_name(const std::string& served_name, const std::string& directory);

}  // namespace lathe::daemon
