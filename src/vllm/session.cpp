#include "vllm/session.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

namespace lathe::vllm {
namespace {

using Json = nlohmann::json;

constexpr int kProtocol = 1;
constexpr size_t kMaxReply = size_t{256} << 20;

// Of mode 0600 and owned by this user: nobody else can have made it or be listening on it.
Status check_socket(const std::string& path) {
  struct stat found {};
  if (::lstat(path.c_str(), &found) != 0)
    return io_error("no socket at " + path + "; is vLLM running with the plugin, VLLM_PLUGINS=lathe?", errno);
  if (!S_ISSOCK(found.st_mode)) return invalid_argument(path + " is not a socket");
  if (found.st_uid != ::geteuid()) {
    return invalid_argument(path + " belongs to user " + std::to_string(found.st_uid) + ", this is user " +
                            std::to_string(::geteuid()) + "; run Lathe as the server's user");
  }
  if ((found.st_mode & 077) != 0) return invalid_argument(path + " is open to other users; its mode must be 0600");
  return {};
}

}  // namespace

Result<Session> Session::connect(const std::string& path) {
  LATHE_TRY(check_socket(path));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return invalid_argument("the path of the socket is too long: " + path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (socket.get() < 0) return io_error("making a socket", errno);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return io_error("nothing answers at " + path + "; is vLLM still running?", errno);
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
    return io_error("asking who answers at " + path, errno);
  if (peer.uid != ::geteuid())
    return invalid_argument("user " + std::to_string(peer.uid) + " answers at " + path + "; it must be this user");
  return Session(std::move(socket), path);
}

Error Session::gone(int native) const {
  Error error = native != 0 ? io_error("the connection to vLLM at " + path_ + " failed", native)
                            : Error{Code::kUnavailable, "vLLM closed the connection at " + path_};
  error.code = Code::kUnavailable;
  return error;
}

Result<std::string> Session::read_line() {
  size_t searched = 0;
  for (;;) {
    const size_t end = received_.find('\n', searched);
    if (end != std::string::npos) {
      std::string line = received_.substr(0, end);
      received_.erase(0, end + 1);
      return line;
    }
    searched = received_.size();
    if (searched > kMaxReply) return invalid_argument("vLLM's answer at " + path_ + " does not end");
    char piece[1 << 16];
    const ssize_t got = ::recv(socket_.get(), piece, sizeof piece, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return gone(errno);
    if (got == 0) return gone(0);
    received_.append(piece, static_cast<size_t>(got));
  }
}

Result<std::string> Session::call(const std::string& request) {
  const std::string line = request + "\n";
  for (size_t sent = 0; sent < line.size();) {
    const ssize_t went = ::send(socket_.get(), line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    if (went < 0 && errno == EINTR) continue;
    if (went < 0) return gone(errno);
    sent += static_cast<size_t>(went);
  }
  std::string reply = LATHE_TRY(read_line());
  const Json json = Json::parse(reply, nullptr, false);
  if (!json.is_object() || !json.contains("ok") || !json["ok"].is_boolean())
    return invalid_argument("what answers at " + path_ + " does not speak lathe-vllm's protocol");
  if (!json["ok"].get<bool>()) {
    const auto why = json.find("error");
    return Error{Code::kConflict,
                 "vLLM's plugin: " + (why != json.end() && why->is_string() ? why->get<std::string>() : "refused")};
  }
  return reply;
}

Status Session::simple(std::string_view operation) {
  LATHE_TRY(call(Json{{"op", operation}}.dump()));
  return {};
}

Result<Session::Greeting> Session::hello() {
  const std::string reply = LATHE_TRY(call(Json{{"op", "hello"}, {"protocol", kProtocol}}.dump()));
  const Json json = Json::parse(reply);
  const auto fits = [&] {
    return json.contains("manifest") && json["manifest"].is_object() && json["manifest"].contains("ranks") &&
           json["manifest"]["ranks"].is_array() && !json["manifest"]["ranks"].empty() && json.contains("version") &&
           json["version"].is_string() && json.contains("as_on_disk") && json["as_on_disk"].is_boolean();
  };
  if (!fits()) return invalid_argument("the greeting at " + path_ + " is not one of lathe-vllm's");
  Greeting greeting{.version = json["version"], .as_on_disk = json["as_on_disk"]};
  for (const Json& rank : json["manifest"]["ranks"]) greeting.ranks.push_back(LATHE_TRY(Manifest::parse(rank.dump())));
  return greeting;
}

Status Session::begin(std::chrono::seconds lease, bool pause) {
  LATHE_TRY(call(Json{{"op", "begin"}, {"lease_seconds", lease.count()}, {"pause", pause}}.dump()));
  return {};
}

Status Session::write() {
  return simple("write");
}

Status Session::end(int64_t version) {
  LATHE_TRY(call(Json{{"op", "end"}, {"version", std::to_string(version)}}.dump()));
  return {};
}

Status Session::abort() {
  return simple("abort");
}

Status Session::durable() {
  return simple("durable");
}

Status Session::restore() {
  return simple("restore");
}

bool Session::wait_closed(std::chrono::milliseconds timeout) const {
  pollfd waiting{.fd = socket_.get(), .events = POLLRDHUP, .revents = 0};
  return ::poll(&waiting, 1, static_cast<int>(timeout.count())) > 0;
}

}  // namespace lathe::vllm
