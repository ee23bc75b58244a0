#include "history/prune.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "commands.h"
#include "progress_bar.h"
#include "report.h"
#include "value_checks.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string directory;
  history::Retention retention;
  bool dry_run = false, json = false;
};

Result<Json> prune(const Options& options) {
  const auto now =
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch());
  ProgressBar bar;
  const history::PruneReport done =
      LATHE_TRY(history::prune(io::posix_env(), options.directory, options.retention, now.count(), options.dry_run,
                               {.progress = bar.callback()}));
  return Json{{"removed", done.removed},
              {"kept", done.kept},
              {"bytes_before", done.bytes_before},
              {"bytes_after", done.bytes_after},
              {"dry_run", options.dry_run}};
}

}  // namespace

Action add_prune(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "The model directory; its server may be running")->required();
  app.add_option("--all-hours", options->retention.all_hours, "Keep every version younger than this")
      ->check(integer(0))
      ->capture_default_str();
  app.add_option("--hourly-hours", options->retention.hourly_hours, "Then one an hour until this age")
      ->check(integer(0))
      ->capture_default_str();
  app.add_option("--daily-days", options->retention.daily_days, "Then one a day until this age; then one a week")
      ->check(integer(0))
      ->capture_default_str();
  app.add_flag("--dry-run", options->dry_run, "Say what would be removed");
  app.add_flag("--json", options->json, "Print the result as JSON");
  app.footer("The first and the newest version are always kept, and those that a pushed copy is at.");
  return [options] {
    return report(
        "prune", options->json, [&] { return prune(*options); },
        [&](const Json& done) {
          if (done["kept"] == 0) return void(std::printf("%s has no history yet\n", options->directory.c_str()));
          const size_t removed = done["removed"].size();
          std::printf("%s %zu version%s, %s %ld; deltas %s", options->dry_run ? "would remove" : "removed", removed,
                      removed == 1 ? "" : "s", options->dry_run ? "keep" : "kept", static_cast<long>(done["kept"]),
                      mebibytes(done["bytes_before"]).c_str());
          std::printf(options->dry_run ? " now\n" : " -> %s\n", mebibytes(done["bytes_after"]).c_str());
        });
  };
}

}  // namespace lathe::cli
