// RemoteCopy: a copy of a model directory on another machine, reached by running `lathe receive` there through ssh.
//
// Threads: one. Protocol page: docs/protocols/push.md
#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "base/result.h"
#include "history/push.h"
#include "io/env.h"

namespace lathe::history {

class RemoteCopy {
 public:
  // kUnavailable if the program there does not answer; the error has what it said.
  static Result<RemoteCopy> connect(const std::string& ssh, const std::string& host, const std::string& lathe,
                                    const std::string& directory);
  RemoteCopy(RemoteCopy&&) noexcept;
  ~RemoteCopy();

  const CopyState& state() const;
  // Returns once the copy has made the delta durable, applied it, and said what it is now.
  Status send(const io::RandomAccessFile& delta, const delta::Progress& progress);
  // Ends the program there; its exit code must be 0.
  Status finish();

 private:
  struct Process;
  explicit RemoteCopy(std::unique_ptr<Process> process);
  Status read_state();

  std::unique_ptr<Process> process_;
};

// host:path, as scp and rsync read it: a colon before any slash.
bool is_remote(const std::string& destination);

// How the other machine is reached, and what Lathe is called there.
struct Remote {
  std::string ssh = "ssh", lathe = "lathe";
};

// push() for a destination that is_remote(). The copy must be there.
Result<CopyState> push_remote(io::Env& env, const std::string& directory, const std::string& destination,
                              const Remote& remote, const ApplyOptions& options = {});

// The far side: states into `out`, deltas from `in`, until the sender ends the conversation. What went wrong was said
// to the sender.
Status answer_push(io::Env& env, const std::string& directory, std::FILE* in, std::FILE* out);

}  // namespace lathe::history
