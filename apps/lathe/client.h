// Client: JSON over HTTP to a running `lathe serve`, for the commands that talk to one.
//
// Threads: one.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"
#include "io/env.h"

namespace lathe::cli {

class Client {
 public:
  // url: as http::parse_address() takes it. An empty key sends none.
  static Result<Client> create(const std::string& url, const std::string& api_key);
  Client(Client&&) noexcept;
  ~Client();

  // The server's own message comes back as the error. kInvalidArgument if a text in `body` is not UTF-8.
  Result<nlohmann::ordered_json> get(const std::string& path);
  Result<nlohmann::ordered_json> post(const std::string& path, const nlohmann::ordered_json& body);
  // Calls on_event for each server-sent event until "[DONE]" or until it returns false, which closes the connection
  // and is no error.
  Status post_streaming(const std::string& path, const nlohmann::ordered_json& body,
                        const std::function<bool(const nlohmann::ordered_json&)>& on_event);

 private:
  struct State;
  explicit Client(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// The address of the `lathe serve` or `lathe attach` that works on the directory; empty if there is none.
std::string running_server(io::Env& env, const std::string& directory);

}  // namespace lathe::cli
