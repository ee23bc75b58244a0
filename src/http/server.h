// Server: HTTP/1.1 with server-sent events over cpp-httplib. Knows routes, keys, limits and connections, nothing of
// models.
//
// Threads: start() listens on a thread of its own; handlers run concurrently, one request each, of POST at most
// Options::threads at once. GET and DELETE are not counted: they answer at once, also while all others are busy.
// stop() from any thread but a handler's: no new requests, waits for those in flight.
// Access: no route sees a request that access.h refuses.
// Memory: bodies are bounded by max_body_bytes (413 beyond); connections by the pool (connection_pool.h) and its queue.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "http/access.h"

namespace lathe::http {

struct Options {
  std::string host = "127.0.0.1";
  int port = 8077;      // 0: any free one
  std::string api_key;  // empty: none asked for; then only loopback addresses may be bound
  // Beside `host`: names under which clients reach it; web pages that may use it (access.h).
  std::vector<std::string> allowed_hosts = {}, allowed_origins = {};
  int threads = 16;  // requests that work at once; more wait
  int64_t max_body_bytes = 8 << 20;
};

// False when the client is gone.
using Connected = std::function<bool()>;

struct Request {
  std::string path;
  std::string argument;  // what a trailing "/*" or "/**" of the route matched
  std::string body;
  std::function<std::string(const std::string& name)> query;  // value of a query parameter, or empty
  Headers headers;
  Connected connected;  // until the response is complete, on one thread at a time
};

// Writes one event, or one piece of a body; false when the client is gone.
using SendEvent = std::function<bool(std::string_view data)>;
using SendPiece = SendEvent;

struct Response {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  // If set, the body is what this returns, and status and headers go out before it is called: for an answer that takes
  // long and is not worth finishing once the client has left. An error closes the connection.
  std::function<Result<std::string>(const Connected& connected)> deferred;
  // If set, the response is a stream of events and `body` is not sent. Returns when the stream is complete.
  std::function<void(const SendEvent& send)> stream;
  // If set, the body is what this sends, unchanged. False if that is not all: the connection closes without the body's
  // end.
  std::function<bool(const SendPiece& send)> pieces;
  Headers headers;  // beside the content's type and length
};

using Handler = std::function<Response(const Request&)>;

class Server {
 public:
  explicit Server(Options options);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Before start(). `method`: GET, POST or DELETE; what is posted is JSON. A path may end in "/*" or "/**"
  // (router.h). A handler that throws is answered with 500.
  void route(const std::string& method, const std::string& path, Handler handler);
  // Headers added to every response at the time it is sent.
  void set_header(const std::string& name, std::function<std::string()> value);

  // Binds and listens. kConflict names a port in use; kInvalidArgument an address that needs a key.
  Status start();
  int port() const;
  void stop();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lathe::http
