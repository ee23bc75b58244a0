#include "history/remote_copy.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

namespace lathe::history {
namespace {

using Json = nlohmann::json;

// For the shell there: in single quotes, which only a single quote ends.
std::string quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

Error gone() {
  return {Code::kUnavailable, "the program at the copy went away; its error is above"};
}

}  // namespace

struct RemoteCopy::Process {
  pid_t id = -1;
  std::FILE *to = nullptr, *from = nullptr;
  CopyState state;

  ~Process() {
    if (to) std::fclose(to);
    if (from) std::fclose(from);
    if (id > 0) ::waitpid(id, nullptr, 0);
  }
};

RemoteCopy::RemoteCopy(std::unique_ptr<Process> process) : process_(std::move(process)) {}
RemoteCopy::RemoteCopy(RemoteCopy&&) noexcept = default;
RemoteCopy::~RemoteCopy() = default;

const CopyState& RemoteCopy::state() const {
  return process_->state;
}

Result<RemoteCopy> RemoteCopy::connect(const std::string& ssh, const std::string& host, const std::string& lathe,
                                       const std::string& directory) {
  signal(SIGPIPE, SIG_IGN);
  int down[2], up[2];
  if (::pipe(down) != 0 || ::pipe(up) != 0) return io_error("cannot make a pipe", errno);
  const std::string command = lathe + " receive " + quoted(directory);
  const pid_t id = ::fork();
  if (id < 0) return io_error("cannot start " + ssh, errno);
  if (id == 0) {
    signal(SIGPIPE, SIG_DFL);
    ::dup2(down[0], STDIN_FILENO);
    ::dup2(up[1], STDOUT_FILENO);
    for (const int end : {down[0], down[1], up[0], up[1]}) ::close(end);
    ::execlp(ssh.c_str(), ssh.c_str(), host.c_str(), command.c_str(), static_cast<char*>(nullptr));
    std::fprintf(stderr, "cannot run %s\n", ssh.c_str());
    ::_exit(127);
  }
  ::close(down[0]);
  ::close(up[1]);
  auto process = std::make_unique<Process>();
  process->id = id;
  process->to = ::fdopen(down[1], "wb");
  process->from = ::fdopen(up[0], "rb");
  RemoteCopy copy(std::move(process));
  LATHE_TRY(copy.read_state());
  return copy;
}

Status RemoteCopy::read_state() {
  std::string line;
  for (int c; (c = std::fgetc(process_->from)) != EOF && c != '\n';) line += static_cast<char>(c);
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return gone();
  if (json.contains("error") && json["error"].is_string()) {
    return Error{Code::kConflict, "the copy says: " + json["error"].get<std::string>()};
  }
  if (!json.contains("version") || !json["version"].is_number_integer() || !json.contains("root") ||
      !json["root"].is_string()) {
    return gone();
  }
  process_->state = {.version = json["version"].get<int64_t>(),
                     .root = LATHE_TRY(Root::from_hex(json["root"].get<std::string>()))};
  return {};
}

Status RemoteCopy::send(const io::RandomAccessFile& delta, const delta::Progress& progress) {
  const uint64_t size = delta.size();
  if (std::fwrite(&size, sizeof size, 1, process_->to) != 1) return gone();
  std::vector<std::byte> buffer(std::min<uint64_t>(size, uint64_t{1} << 20));
  for (uint64_t done = 0; done < size;) {
    const auto piece = std::span(buffer).first(std::min<uint64_t>(buffer.size(), size - done));
    LATHE_TRY(delta.read_at(done, piece));
    if (std::fwrite(piece.data(), 1, piece.size(), process_->to) != piece.size()) {
      LATHE_TRY(read_state());  // it may have said why
      return gone();
    }
    done += piece.size();
    if (progress) progress("sending", done, size);
  }
  if (std::fflush(process_->to) != 0) return gone();
  return read_state();
}

Status RemoteCopy::finish() {
  const uint64_t end = 0;
  if (std::fwrite(&end, sizeof end, 1, process_->to) != 1 || std::fflush(process_->to) != 0) return gone();
  int status = 0;
  ::waitpid(std::exchange(process_->id, -1), &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  return Error{Code::kUnavailable, "the program at the copy failed at its end"};
}

bool is_remote(const std::string& destination) {
  const size_t colon = destination.find(':');
  return colon != std::string::npos && destination.find('/') > colon;
}

Result<CopyState> push_remote(io::Env& env, const std::string& directory, const std::string& destination,
                              const Remote& remote, const ApplyOptions& options) {
  const size_t colon = destination.find(':');
  if (colon == 0)
    return invalid_argument("'" + destination + "' names no host before the colon; write HOST:DIRECTORY, or ./" +
                            destination + " for a directory of that name");
  const auto lock = LATHE_TRY(delta::lock_history(env, directory));
  const History history = LATHE_TRY(History::open(env, directory, options));
  auto copy = LATHE_TRY(
      RemoteCopy::connect(remote.ssh, destination.substr(0, colon), remote.lathe, destination.substr(colon + 1)));
  for (const DeltaFile& delta : LATHE_TRY(deltas_for(history, copy.state()))) {
    const auto file = LATHE_TRY(env.open_read(history.paths().delta(delta.from, delta.to)));
    LATHE_TRY(copy.send(*file, options.progress));
  }
  const CopyState state = copy.state();
  LATHE_TRY(copy.finish());
  if (state.root != history.head().state.root()) return internal("the copy did not arrive at the same root");
  LATHE_TRY(record_pushed(env, history.paths(), destination, history.head().version));
  return state;
}

Status answer_push(io::Env& env, const std::string& directory, std::FILE* in, std::FILE* out) {
  const auto say = [out](const Result<CopyState>& state) -> Status {
    const Json json = state.ok() ? Json{{"version", state->version}, {"root", state->root.hex()}}
                                 : Json{{"error", state.error().message}};
    std::fprintf(out, "%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    std::fflush(out);
    return state.ok() ? Status() : Status(state.error());
  };
  const ReadBytes read = [in](std::span<std::byte> bytes) -> Status {
    if (std::fread(bytes.data(), 1, bytes.size(), in) == bytes.size()) return {};
    return Error{Code::kUnavailable, "the sender went away"};
  };
  LATHE_TRY(say(copy_state(env, directory)));
  for (;;) {
    uint64_t size = 0;
    LATHE_TRY(read(std::as_writable_bytes(std::span(&size, 1))));
    if (size == 0) return {};
    LATHE_TRY(say(receive(env, directory, size, read)));
  }
}

}  // namespace lathe::history
