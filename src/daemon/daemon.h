// Daemon: one process that serves a model directory and learns.
//
// Builds the objects, starts the threads (docs/threads.md), and ends them in order when SIGTERM or SIGINT comes.
#pragma once

#include <functional>
#include <string>

#include "base/result.h"
#include "config/settings.h"

namespace lathe::daemon {

// Serves `directory` until a signal. `ready` is called with the port once requests are answered. Returns when all is
// stopped and synced; the error is what kept it from starting, or from making the last version durable.
Status serve(const std::string& directory, config::Settings settings, const std::function<void(int port)>& ready);

}  // namespace lathe::daemon
