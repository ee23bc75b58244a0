// Announcement: the file in a model directory that tells `lathe sync MODEL_DIR` and its like where its server listens,
// while the server lives.
//
// Threads: one. Errors: logged only; without the file, --server names the address.
#pragma once

#include <string>

#include "io/env.h"

namespace lathe::daemon {

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

}  // namespace lathe::daemon
