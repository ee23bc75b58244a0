#include "daemon/process.h"

#include <filesystem>

#include "base/log.h"
#include "history/sync.h"
#include "http/address.h"

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

Result<int64_t> recovered_version(io::Env& env, const std::string& directory) {
  const auto lock = LATHE_TRY(delta::lock_history(env, directory));
  LATHE_TRY(history::recover(env, directory));
  return history::read_version(env, directory);
}

Announcement::Announcement(io::Env& env, const std::string& directory, const std::string& host, int port)
    : env_(env), path_(delta::Paths(directory).server) {
  const bool any = host == "0.0.0.0" || host == "::" || host == "[::]";
  const std::string url = "http://" + http::authority(any ? "127.0.0.1" : host, port);
  const Status written = io::write_text_atomically(env_, path_, "{\"url\": \"" + url + "\"}");
  if (!written.ok()) log::warning(written.error().message);
}

Announcement::~Announcement() {
  [[maybe_unused]] const Status removed = io::remove_if_there(env_, path_);
}

std::string model_name(const std::string& served_name, const std::string& directory) {
  if (!served_name.empty()) return served_name;
  auto path = std::filesystem::path(directory).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  return path.filename() == "." ? std::filesystem::absolute(path).lexically_normal().parent_path().filename().string()
                                : path.filename().string();
}

}  // namespace lathe::daemon
