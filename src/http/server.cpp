#include "http/server.h"

#include <httplib.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <thread>
#include <vector>

#include "base/log.h"
#include "base/thread_border.h"
#include "http/address.h"
#include "http/connection_pool.h"
#include "http/error_body.h"
#include "http/router.h"

namespace lathe::http {
namespace {

void write_error(httplib::Response& response, const Error& error, int status = 0) {
  const ErrorBody body = error_body(error);
  response.status = status ? status : body.status;
  if (error.code == Code::kExhausted) response.set_header("Retry-After", "1");
  response.set_content(body.json, "application/json");
}

void no_route(const httplib::Request& request, const std::vector<std::string>& methods, httplib::Response& response) {
  const std::string asked = request.method + " " + request.path;
  if (methods.empty()) {
    return write_error(response, not_found("there is no " + asked +
                                           "; clients of OpenAI's API take http://HOST:PORT/v1 as their base address"));
  }
  std::string allowed;
  for (const std::string& method : methods) allowed += (allowed.empty() ? "" : ", ") + method;
  response.set_header("Allow", allowed);
  write_error(response, invalid_argument("there is no " + asked + ", only " + allowed), 405);
}

// "ADDRESS PORT" of one end of a socket; empty if it is none, or not connected.
template <class Name>
std::string end_of(int socket, Name name) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  if (name(socket, generic, &size) != 0 || address.ss_family == AF_UNIX) return "";
  if (::getnameinfo(generic, size, host.data(), host.size(), port.data(), port.size(),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return "";
  return std::string(host.data()) + " " + port.data();
}

// Beside those whose requests work: clients that are slow, or idle, or only ask how the server is.
constexpr size_t kFurtherConnections = 256;

constexpr int kNoSocket = -1, kUnknown = -2;

// The socket of a request, which the library keeps from handlers; but it says whom it connects.
int socket_of(const httplib::Request& request) {
  const std::string remote = request.remote_addr + " " + std::to_string(request.remote_port);
  const std::string local = request.local_addr + " " + std::to_string(request.local_port);
  std::error_code unreadable;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", unreadable)) {
    const int socket = std::atoi(entry.path().filename().c_str());
    if (end_of(socket, ::getpeername) == remote && end_of(socket, ::getsockname) == local) return socket;
  }
  return unreadable ? kUnknown : kNoSocket;
}

// The library goes on with whatever follows on a connection. Where that is the rest of a body that was not read, it
// must not be taken for the next request: what a web page may put into a body could be one.
void end_after(httplib::Response& response) {
  response.set_header("Connection", "close");
}

// After an answer was written: ends the connection if end_after() was called. Closing while bytes of the client are
// unread would destroy the answer on its way, so they are read for a moment, and dropped.
void end_connection(const httplib::Request& request, const httplib::Response& response) {
  if (response.get_header_value("Connection") != "close" || request.get_header_value("Connection") == "close") return;
  const int socket = socket_of(request);
  if (socket < 0) return;
  ::shutdown(socket, SHUT_WR);
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
  std::array<char, 65536> dropped;
  pollfd watched{.fd = socket, .events = POLLIN, .revents = 0};
  while (std::chrono::steady_clock::now() < end && ::poll(&watched, 1, 100) >= 0) {
    const ssize_t count = ::recv(socket, dropped.data(), dropped.size(), MSG_DONTWAIT);
    if (count == 0 || (count < 0 && errno != EAGAIN)) break;
  }
  ::shutdown(socket, SHUT_RD);
}

bool announces_body(const httplib::Request& request) {
  return request.has_header("Transfer-Encoding") ||
         (request.has_header("Content-Length") && request.get_header_value("Content-Length") != "0");
}

// Of the others the library leaves a body unread.
bool may_have_body(const std::string& method) {
  return method == "POST" || method == "PUT" || method == "PATCH";
}

RequestHead head_of(const httplib::Request& request) {
  return {.method = request.method,
          .path = request.path,
          .version = request.version,
          .local_address = request.local_addr,
          .header = [&request](const char* name) {
            std::vector<std::string> values;
            const auto [begin, end] = request.headers.equal_range(name);
            for (auto at = begin; at != end; ++at) values.push_back(at->second);
            return values;
          }};
}

// Looks for the socket when it is first asked: most handlers never ask. A peer that has reset the connection is no
// peer any more, so that then there is none.
Connected connected_of(const httplib::Request& request) {
  return [&request, socket = std::optional<int>()]() mutable {
    if (!socket) socket = socket_of(request);
    if (*socket < 0) return *socket == kUnknown;
    pollfd watched{.fd = *socket, .events = POLLRDHUP, .revents = 0};
    return ::poll(&watched, 1, 0) == 0;
  };
}

class Connections final : public httplib::TaskQueue {
 public:
  explicit Connections(size_t most) : pool_(most) {}
  void enqueue(std::function<void()> connection) override { pool_.enqueue(std::move(connection)); }
  void shutdown() override { pool_.shutdown(); }

 private:
  ConnectionPool pool_;
};

// An answer that `write` makes while it is sent. If that throws or says that it is not whole, the connection ends
// without the last chunk, so that nobody takes the answer for whole. HTTP/1.0 knows no chunks: there the end of the
// connection is the end of the body.
void send_as_made(const httplib::Request& request, const std::string& content_type,
                  std::function<bool(httplib::DataSink&)> write, httplib::Response& response) {
  const auto provide = [path = request.path, write = std::move(write)](size_t, httplib::DataSink& sink) {
    bool whole = false;
    within_border(path, [&] { whole = write(sink); });
    if (whole) sink.done();
    return whole;
  };
  if (request.version != "HTTP/1.0") return response.set_chunked_content_provider(content_type, provide);
  response.set_content_provider(content_type, provide);
  end_after(response);
}

}  // namespace

struct Server::State {
  explicit State(Options o) : options(std::move(o)) {}

  Options options;
  std::optional<Access> access;  // from start() on
  httplib::Server server;
  Router router;
  std::vector<std::pair<std::string, std::function<std::string()>>> headers;
  Places places{static_cast<size_t>(options.threads)};
  std::jthread listener;

  // Answers a request that may not go on to its route.
  bool refused(const httplib::Request& request, httplib::Response& response) const;
  Error too_large() const {
    return invalid_argument("the request body is larger than " + std::to_string(options.max_body_bytes) + " bytes");
  }

  void configure();
  void add_methods();
  void read_and_answer(const httplib::Request& request, const httplib::ContentReader& read,
                       httplib::Response& response);
  void answer(const httplib::Request& request, std::string body, httplib::Response& response);
};

bool Server::State::refused(const httplib::Request& request, httplib::Response& response) const {
  const bool body = announces_body(request);
  if (const auto refusal = access->refuse(head_of(request))) {
    write_error(response, refusal->error, refusal->status);
  } else if (body && !may_have_body(request.method)) {
    write_error(response, invalid_argument("a " + request.method + " request has no body"));
  } else if (std::strtoll(request.get_header_value("Content-Length").c_str(), nullptr, 10) > options.max_body_bytes) {
    write_error(response, too_large(), 413);
  } else {
    return false;
  }
  if (body) end_after(response);
  return true;
}

void Server::State::answer(const httplib::Request& request, std::string body, httplib::Response& response) {
  const Router::Found found = router.find(request.method, request.path);
  if (!found.route) return no_route(request, found.methods, response);
  // What reads or cancels takes no place: a server whose places are all taken can still be asked how it is.
  const std::shared_ptr<void> place = found.route->method == "POST" ? places.take() : nullptr;
  Request native{
      .path = request.path, .argument = found.argument, .body = std::move(body), .query = [&](const std::string& name) {
        return request.get_param_value(name);
      }};
  native.headers.assign(request.headers.begin(), request.headers.end());
  native.connected = connected_of(request);
  Response result = found.route->handler(native);
  response.status = result.status;
  for (const auto& [name, value] : result.headers) response.set_header(name, value);
  if (result.status == 429 && !response.has_header("Retry-After")) response.set_header("Retry-After", "1");
  if (result.stream) {
    response.set_header("Cache-Control", "no-cache");
    const auto write = [place, stream = std::move(result.stream)](httplib::DataSink& sink) {
      stream([&](std::string_view data) {
        const std::string event = "data: " + std::string(data) + "\n\n";
        return sink.is_writable() && sink.write(event.data(), event.size());
      });
      return true;
    };
    send_as_made(request, "text/event-stream", write, response);
  } else if (result.pieces) {
    const auto write = [place, pieces = std::move(result.pieces)](httplib::DataSink& sink) {
      return pieces([&](std::string_view data) { return sink.is_writable() && sink.write(data.data(), data.size()); });
    };
    send_as_made(request, result.content_type, write, response);
  } else if (result.deferred) {
    const auto write = [place, path = request.path, deferred = std::move(result.deferred)](httplib::DataSink& sink) {
      const Result<std::string> made = deferred([&] { return sink.is_writable(); });
      if (!made.ok() && made.error().code != Code::kCancelled)
        log::error(path + ": answer not finished: " + made.error().message);
      return made.ok() && sink.write(made->data(), made->size());
    };
    send_as_made(request, result.content_type, write, response);
  } else {
    response.set_content(result.body, result.content_type);
  }
}

void Server::State::configure() {
  server.new_task_queue = [threads = options.threads] {
    return new Connections(static_cast<size_t>(threads) + kFurtherConnections);
  };
  server.set_payload_max_length(static_cast<size_t>(options.max_body_bytes));
  server.set_tcp_nodelay(true);
  server.set_keep_alive_max_count(1000);
  server.set_keep_alive_timeout(2);  // an idle connection holds a thread, and stop() waits for it
  server.set_read_timeout(30);
  server.set_write_timeout(30);
  server.set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
    return refused(request, response) ? httplib::Server::HandlerResponse::Handled
                                      : httplib::Server::HandlerResponse::Unhandled;
  });
  server.set_post_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
    for (const auto& [name, value] : access->answer_headers(head_of(request))) response.set_header(name, value);
    for (const auto& [name, value] : headers) response.set_header(name, value());
  });
  server.set_exception_handler(
      [](const httplib::Request& request, httplib::Response& response, const std::exception_ptr& exception) {
        std::string what = "unknown";
        try {
          std::rethrow_exception(exception);
        } catch (const std::exception& e) {
          what = e.what();
        } catch (...) {
        }
        log::error(request.path + ": " + what);
        write_error(response, internal("internal error: " + what));
      });
  server.set_logger(end_connection);
  // Answers of the library itself, such as for an unknown path.
  server.set_error_handler([](const httplib::Request& request, httplib::Response& response) {
    if (!response.body.empty() || response.has_header("Content-Type")) return;
    if (response.status == 404)
      return write_error(response, not_found("there is no " + request.method + " " + request.path));
    write_error(response, invalid_argument("the request could not be read"), response.status);
  });
  server.Options(".*", [this](const httplib::Request& request, httplib::Response& response) {
    response.status = 204;
    for (const auto& [name, value] : access->preflight_headers(head_of(request))) response.set_header(name, value);
  });
  add_methods();
}

// The library's own routes are by regular expression; it is left to read and to write.
void Server::State::add_methods() {
  const auto without_body = [this](const httplib::Request& request, httplib::Response& response) {
    answer(request, "", response);
  };
  const auto with_body = [this](const httplib::Request& request, httplib::Response& response,
                                const httplib::ContentReader& read) { read_and_answer(request, read, response); };
  server.Get(".*", without_body);
  server.Delete(".*", without_body);
  server.Post(".*", with_body);
  server.Put(".*", with_body);
  server.Patch(".*", with_body);
}

// The library would wait for a body until it times out when a request announces none, so it is read here.
void Server::State::read_and_answer(const httplib::Request& request, const httplib::ContentReader& read,
                                    httplib::Response& response) {
  std::string body;
  const bool complete = !announces_body(request) || read([&](const char* data, size_t size) {
    body.append(data, size);
    return static_cast<int64_t>(body.size()) <= options.max_body_bytes;
  });
  if (complete) return answer(request, std::move(body), response);
  end_after(response);
  if (response.status != 413 && static_cast<int64_t>(body.size()) <= options.max_body_bytes) {
    return write_error(response, invalid_argument("the request body ended early"));
  }
  write_error(response, too_large(), 413);
}

Server::Server(Options options) : state_(std::make_unique<State>(std::move(options))) {}
Server::~Server() {
  stop();
}

void Server::route(const std::string& method, const std::string& path, Handler handler) {
  state_->router.add({method, path, std::move(handler)});
}

void Server::set_header(const std::string& name, std::function<std::string()> value) {
  state_->headers.emplace_back(name, std::move(value));
}

Status Server::start() {
  Options& options = state_->options;
  state_->access = LATHE_TRY(Access::create({.host = options.host,
                                             .api_key = options.api_key,
                                             .allowed_hosts = options.allowed_hosts,
                                             .allowed_origins = options.allowed_origins}));
  std::string host = options.host;
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  state_->configure();
  // The library's default lets two servers share a port; a second one must fail instead.
  state_->server.set_socket_options([](socket_t socket) {
    const int yes = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
  if (options.port == 0) {
    options.port = state_->server.bind_to_any_port(host);
    if (options.port < 0) return Error{Code::kIo, "cannot bind to " + options.host};
  } else if (!state_->server.bind_to_port(host, options.port)) {
    return Error{Code::kConflict,
                 "cannot listen on " + authority(host, options.port) +
                     "; is it an address of this machine, and is the port free? --host and --port choose others"};
  }
  state_->listener =
      std::jthread([this] { within_border("the listener", [&] { state_->server.listen_after_bind(); }); });
  // stop() does nothing before the listener runs, so start() returns only once it does.
  while (!state_->server.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return {};
}

int Server::port() const {
  return state_->options.port;
}

void Server::stop() {
  if (!state_->listener.joinable()) return;
  state_->server.stop();
  state_->listener.join();
}

}  // namespace lathe::http
