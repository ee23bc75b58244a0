#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "client.h"
#include "commands.h"
#include "history/sync.h"
#include "progress_bar.h"
#include "report.h"
#include "value_checks.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string directory, api_key;
  std::optional<int64_t> version;
  bool redo = false, materialize = false, json = false;
};

Result<Json> roll_back(const Options& options) {
  io::Env& env = io::posix_env();
  if (const std::string server = running_server(env, options.directory); !server.empty()) {
    auto client = LATHE_TRY(Client::create(server, options.api_key));
    if (options.redo) return client.post("/v1/redo", Json::object());
    return client.post("/v1/rollback", options.version ? Json{{"version", *options.version}} : Json::object());
  }
  const auto lock = LATHE_TRY(delta::lock_directory(env, options.directory));
  ProgressBar bar;
  history::SyncOptions how;
  how.materialize = options.materialize;
  how.apply.progress = bar.callback();
  const auto done = LATHE_TRY(options.redo ? history::redo(env, options.directory, {}, how)
                                           : history::rollback(env, options.directory, options.version, {}, how));
  return Json{{"version", done.version}, {"previous", done.previous},       {"restores", done.restores.value_or(0)},
              {"root", done.root.hex()}, {"delta_bytes", done.delta_bytes}, {"bytes_written", done.bytes_written},
              {"seconds", done.seconds}};
}

}  // namespace

Action add_rollback(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory,
                 "The model directory; if a server is running on it, its live weights go back too")
      ->required();
  auto* version = app.add_option("VERSION", options->version,
                                 "Whose weights to put back (`lathe log`); default: the last lesson is undone, then "
                                 "the one before it")
                      ->check(integer(0));
  app.add_flag("--redo", options->redo, "Undo the latest rollback instead")->excludes(version);
  app.add_option("--api-key", options->api_key, "Key of the running server, if any")->envname("LATHE_API_KEY");
  app.add_flag("--materialize", options->materialize, "Replace shards that are symbolic links by copies first");
  app.add_flag("--json", options->json, "Print the result as JSON");
  return [options] {
    return report(
        "rollback", options->json, [&] { return roll_back(*options); },
        [&](const Json& result) {
          std::printf("%s now holds version %ld, with the weights of version %ld%s\n", options->directory.c_str(),
                      static_cast<long>(result.value("version", int64_t{0})),
                      static_cast<long>(result.value("restores", int64_t{0})),
                      options->redo ? "" : "; --redo reverses this");
        });
  };
}

}  // namespace lathe::cli
