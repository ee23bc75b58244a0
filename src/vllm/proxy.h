// Proxy: the inference routes of a vLLM server, passed through, so that what is answered can be corrected.
//
// Answers are passed on as they come, with their status, headers and every byte of their body. Two things are added:
// completions are put under the version of the weights in vLLM's prefix cache ("cache_salt"), and chat completions are
// kept for /v1/learn.
// Threads: handlers run on HTTP threads, concurrently, each with one more thread that reads from vLLM.
// A client that leaves ends its request in vLLM.
// Protocol page: docs/protocols/http.md
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>

#include "api/proxied.h"
#include "http/exchange.h"
#include "http/server.h"
#include "store/store.h"
#include "vllm/server.h"

namespace lathe::vllm {

class Proxy {
 public:
  // `version`: of the weights, from any thread. Keeps the latest `keep` completions. `store` outlives the proxy.
  Proxy(Server upstream, std::function<int64_t()> version, store::Store& store, int64_t keep)
      : upstream_(std::move(upstream)), version_(std::move(version)), store_(store), keep_(keep) {}

  void add_routes(http::Server& server);

  // Cuts off the answers that are under way, so that the HTTP server can stop.
  void stop() { stopping_ = true; }

 private:
  http::Response pass(const http::Request& request, const char* method);
  // What a completed answer is kept with; nothing if it is not to be kept.
  std::optional<store::Completion> keepsake(const http::Request& request, int64_t version, int status) const;
  void keep(const std::optional<store::Completion>& asked, const std::optional<api::Answer>& answer);

  const Server upstream_;
  const std::function<int64_t()> version_;
  store::Store& store_;
  const int64_t keep_;
  std::atomic<bool> stopping_ = false;
};

}  // namespace lathe::vllm
