#include "history/publish.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "progress_bar.h"
#include "report.h"
#include "value_checks.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string directory, link;
  history::PublishOptions publish;
  bool json = false;
};

Result<Json> publish(const Options& options) {
  io::Env& env = io::posix_env();
  const auto lock = LATHE_TRY(delta::lock_history(env, options.directory));
  ProgressBar bar;
  const auto history = LATHE_TRY(history::History::open(env, options.directory, {.progress = bar.callback()}));
  const history::PublishReport done = LATHE_TRY(history::publish(env, history, options.link, options.publish));
  return Json{{"version", done.version},
              {"directory", done.directory},
              {"linked", done.linked},
              {"copied", done.copied},
              {"removed", done.removed}};
}

}  // namespace

Action add_publish(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "The model directory; its server may be running")->required();
  app.add_option("LINK", options->link,
                 "What readers load: becomes a symbolic link to a complete, unchanging directory in LINK.generations")
      ->required();
  app.add_option("--keep", options->publish.keep, "Generations to keep, this one included")
      ->check(integer(1, 100000))
      ->capture_default_str();
  app.add_flag("--copy", options->publish.copy, "Copy the shards instead of linking them");
  app.add_flag("--json", options->json, "Print the result as JSON");
  return [options] {
    return report(
        "publish", options->json, [&] { return publish(*options); },
        [&](const Json& done) {
          std::printf("%s now points to version %ld: %s\n", options->link.c_str(), static_cast<long>(done["version"]),
                      done["directory"].get<std::string>().c_str());
        });
  };
}

}  // namespace lathe::cli
