// Signals: how a server is told to end.
//
// Threads: made on the main thread before any other starts; wait() there too.
#pragma once

#include <signal.h>

namespace lathe::daemon {

// Blocks SIGTERM and SIGINT for this thread and all it starts, so that wait() alone sees them; ignores SIGPIPE.
class Signals {
 public:
  Signals();
  int wait() const;
  // A second signal means now: the default action ends the process.
  void release() const;

 private:
  sigset_t set_;
};

}  // namespace lathe::daemon
