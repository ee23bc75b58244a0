#include "history/push.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "history_command.h"
#include "remote_copy.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string directory, destination, ssh = "ssh", remote_lathe = "lathe";
  bool json = false;
};

// host:path, as scp and rsync read it: a colon before any slash.
bool is_remote(const std::string& destination) {
  const size_t colon = destination.find(':');
  return colon != std::string::npos && colon > 0 && destination.find('/') > colon;
}

Result<history::CopyState> push_remote(io::Env& env, const Options& options) {
  const auto lock = LATHE_TRY(delta::lock_history(env, options.directory));
  const auto history = LATHE_TRY(history::History::open(env, options.directory));
  const size_t colon = options.destination.find(':');
  auto copy = LATHE_TRY(RemoteCopy::connect(options.ssh, options.destination.substr(0, colon), options.remote_lathe,
                                            options.destination.substr(colon + 1)));
  ProgressBar bar;
  const auto deltas = LATHE_TRY(history::deltas_for(history, copy.state()));
  for (const history::DeltaFile& delta : deltas) {
    const auto file = LATHE_TRY(env.open_read(history.paths().delta(delta.from, delta.to)));
    LATHE_TRY(copy.send(*file, bar.callback()));
  }
  const history::CopyState state = copy.state();
  LATHE_TRY(copy.finish());
  if (state.root != history.head().state.root()) return internal("the copy did not arrive at the same root");
  LATHE_TRY(history::record_pushed(env, history.paths(), options.destination, history.head().version));
  return state;
}

Result<Json> push(const Options& options) {
  io::Env& env = io::posix_env();
  std::error_code ignored;
  if (!is_remote(options.destination) && std::filesystem::equivalent(options.directory, options.destination, ignored)) {
    return invalid_argument("a directory cannot be pushed to itself");
  }
  const auto pushed = [&]() -> Result<history::CopyState> {
    if (is_remote(options.destination)) return push_remote(env, options);
    ProgressBar bar;
    return history::push(env, options.directory, options.destination, {.progress = bar.callback()});
  }();
  if (!pushed.ok()) return pushed.error();
  return Json{{"version", pushed->version}, {"root", pushed->root.hex()}, {"destination", options.destination}};
}

// The far side of a push: states on standard output, deltas on standard input (docs/protocols/push.md).
int receive(const std::string& directory) {
  io::Env& env = io::posix_env();
  const auto say = [](const Result<history::CopyState>& state) {
    const Json json = state.ok() ? Json{{"version", state->version}, {"root", state->root.hex()}}
                                 : Json{{"error", state.error().message}};
    std::printf("%s\n", json.dump().c_str());
    std::fflush(stdout);
    return state.ok();
  };
  const history::ReadBytes read = [](std::span<std::byte> out) -> Status {
    if (std::fread(out.data(), 1, out.size(), stdin) == out.size()) return {};
    return Error{Code::kUnavailable, "the sender went away"};
  };
  if (!say(history::copy_state(env, directory))) return 1;
  for (;;) {
    uint64_t size = 0;
    if (!read(std::as_writable_bytes(std::span(&size, 1))).ok()) return 1;
    if (size == 0) return 0;
    if (!say(history::receive(env, directory, size, read))) return 1;
  }
}

}  // namespace

Run add_push(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "The model directory; its server may be running")->required();
  app.add_option("DEST", options->destination,
                 "The copy: a directory, created if it does not exist, or HOST:DIRECTORY over ssh")
      ->required();
  app.add_option("--ssh", options->ssh, "The ssh program")->envname("LATHE_SSH")->capture_default_str();
  app.add_option("--remote-lathe", options->remote_lathe, "The lathe program there")->capture_default_str();
  app.add_flag("--json", options->json, "Print the result as JSON");
  return [options] {
    return report(
        "push", options->json, [&] { return push(*options); },
        [&](const Json& done) {
          std::printf("%s holds version %ld, root %s\n", options->destination.c_str(),
                      static_cast<long>(done["version"]), done["root"].get<std::string>().substr(0, 12).c_str());
        });
  };
}

Run add_receive(CLI::App& app) {
  const auto directory = std::make_shared<std::string>();
  app.add_option("MODEL_DIR", *directory, "The copy")->required();
  return [directory] { return receive(*directory); };
}

}  // namespace lathe::cli
