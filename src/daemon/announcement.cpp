#include "daemon/announcement.h"

#include "base/log.h"
#include "delta/paths.h"
#include "http/address.h"

namespace lathe::daemon {

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

}  // namespace lathe::daemon
