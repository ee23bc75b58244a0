#include "daemon/signals.h"

namespace lathe::daemon {

Signals::Signals() {
  sigemptyset(&set_);
  sigaddset(&set_, SIGTERM);
  sigaddset(&set_, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

int Signals::wait() const {
  int number = 0;
  sigwait(&set_, &number);
  return number;
}

void Signals::release() const {
  pthread_sigmask(SIG_UNBLOCK, &set_, nullptr);
}

}  // namespace lathe::daemon
