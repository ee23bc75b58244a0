// Session: the trainer's side of the protocol by which an engine lets its weights be changed.
//
// An update is begin() (the engine stands still), write() (from here on the weights may be changed), end() (caches are
// dropped, the version has its number, the engine resumes). The engine's side watches: if this process dies in between,
// or takes longer than its lease, the update is undone there, and this process killed.
//
// Threads: one at a time, but for wait_closed(). Blocking: each call until the engine answers.
// Protocol page: docs/protocols/vllm.md
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "vllm/descriptor.h"
#include "vllm/manifest.h"

namespace lathe::vllm {

class Session {
 public:
  // What the engine's side said when it was greeted.
  struct Greeting {
    std::vector<Manifest> ranks;
    std::string version;     // of the live weights, as the last trainer called it; empty: as loaded
    bool as_on_disk = true;  // no update since the last version that is durable
  };

  // Refuses a socket that others than this user could have made or can enter.
  static Result<Session> connect(const std::string& path);

  Result<Greeting> hello();

  // `pause` false: the engine keeps running, and is paused briefly at the end.
  Status begin(std::chrono::seconds lease, bool pause);
  Status write();
  Status end(int64_t version);
  // Gives an open update up: what was written is replaced by the model directory's weights.
  Status abort();
  // All weights are now as in the model directory.
  Status durable();
  // Makes the live weights those of the model directory.
  Status restore();

  // Waits until the engine's side has closed the connection (true), or for `timeout`. On any thread.
  bool wait_closed(std::chrono::milliseconds timeout) const;

 private:
  Session(Descriptor socket, std::string path) : socket_(std::move(socket)), path_(std::move(path)) {}

  // One line there, one line back; the reply's text if it says ok.
  Result<std::string> call(const std::string& request);
  Status simple(std::string_view operation);
  Result<std::string> read_line();
  Error gone(int native) const;

  Descriptor socket_;
  std::string path_;
  std::string received_;
};

}  // namespace lathe::vllm
