#include "history/push.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "history/remote_copy.h"
#include "progress_bar.h"
#include "report.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string directory, destination;
  history::Remote remote;
  bool json = false;
};

Result<Json> push(const Options& options) {
  io::Env& env = io::posix_env();
  std::error_code ignored;
  if (!history::is_remote(options.destination) &&
      std::filesystem::equivalent(options.directory, options.destination, ignored)) {
    return invalid_argument("a directory cannot be pushed to itself");
  }
  ProgressBar bar;
  const history::ApplyOptions how = {.progress = bar.callback()};
  const auto pushed = history::is_remote(options.destination)
                          ? history::push_remote(env, options.directory, options.destination, options.remote, how)
                          : history::push(env, options.directory, options.destination, how);
  if (!pushed.ok()) return pushed.error();
  return Json{{"version", pushed->version}, {"root", pushed->root.hex()}, {"destination", options.destination}};
}

}  // namespace

Action add_push(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "The model directory; its server may be running")->required();
  app.add_option("DEST", options->destination,
                 "The copy: a directory, created if it does not exist, or HOST:DIRECTORY over ssh")
      ->required();
  app.add_option("--ssh", options->remote.ssh, "The ssh program")->envname("LATHE_SSH")->capture_default_str();
  app.add_option("--remote-lathe", options->remote.lathe, "The lathe program there")->capture_default_str();
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

Action add_receive(CLI::App& app) {
  const auto directory = std::make_shared<std::string>();
  app.add_option("MODEL_DIR", *directory, "The copy")->required();
  return [directory] {
    const Status done = history::answer_push(io::posix_env(), *directory, stdin, stdout);
    if (done.ok()) return 0;
    std::fprintf(stderr, "lathe receive: %s\n", done.error().message.c_str());
    return 1;
  };
}

}  // namespace lathe::cli
