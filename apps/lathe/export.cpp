#include "history/export.h"

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
  std::string directory, target;
  int64_t version = 0;
  bool json = false;
};

Result<Json> export_version(const Options& options) {
  io::Env& env = io::posix_env();
  const auto lock = LATHE_TRY(delta::lock_history(env, options.directory));
  ProgressBar bar;
  const auto history = LATHE_TRY(history::History::open(env, options.directory, {.progress = bar.callback()}));
  LATHE_TRY(history::export_version(env, history, options.version, options.target, {.progress = bar.callback()}));
  return Json{{"version", options.version}, {"directory", options.target}};
}

}  // namespace

Action add_export(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "The model directory; its server may be running")->required();
  app.add_option("VERSION", options->version, "The version (`lathe log`)")->required()->check(integer(0));
  app.add_option("DIR", options->target, "The directory to make: complete, with that version's weights")->required();
  app.add_flag("--json", options->json, "Print the result as JSON");
  return [options] {
    return report(
        "export", options->json, [&] { return export_version(*options); },
        [&](const Json&) {
          std::printf("%s holds version %ld\n", options->target.c_str(), static_cast<long>(options->version));
        });
  };
}

}  // namespace lathe::cli
