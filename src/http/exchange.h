// Exchange: a request to another HTTP server whose answer is read piece by piece, and can be given up at any time.
//
// Why: httplib's client blocks while the server is silent. Whoever relays an answer must notice meanwhile that nobody
// waits for it any more.
// Threads: one owner; a thread of its own reads.
// Memory: at most about 256 KiB of the answer wait for the owner; then the server has to wait.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "http/server.h"

namespace lathe::http {

class Exchange {
 public:
  struct Call {
    std::string url;  // as parse_address() takes it
    std::string method, path, body;
    Headers headers;
  };
  struct Head {
    int status = 0;
    Headers headers;
  };
  // Asked several times a second while waiting: false gives up, with kCancelled.
  using Wanted = std::function<bool()>;

  // kInvalidArgument if the address is none. Connects and sends on its thread.
  static Result<std::unique_ptr<Exchange>> start(Call call);
  // An answer that is not complete is given up: the connection closes, by which the server notices.
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // Status and headers. kUnavailable if there is no answer.
  Result<Head> head(const Wanted& wanted);
  // The next piece of the body, empty at its end. kUnavailable if it breaks off. After head().
  Result<std::string> next(const Wanted& wanted);

 private:
  struct State;
  explicit Exchange(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace lathe::http
