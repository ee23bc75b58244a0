#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "commands.h"
#include "history/export.h"
#include "progress_bar.h"
#include "report.h"
#include "value_checks.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const history::Verification& checked) {
  Json damages = Json::array();
  for (const history::Damage& damage : checked.damages) {
    damages.push_back({{"where", damage.where}, {"what", damage.what}});
  }
  return {{"history", checked.history},
          {"version", checked.version},
          {"root", checked.history ? Json(checked.root.hex()) : Json()},
          {"bytes", checked.bytes},
          {"tiles", checked.tiles},
          {"deltas", checked.deltas},
          {"damages", std::move(damages)}};
}

void print(const Json& checked) {
  if (!checked["history"].get<bool>()) {
    std::puts(
        "ok  no history yet: the files are complete, but there is nothing to compare them with; the first sync "
        "begins one");
    return;
  }
  for (const Json& damage : checked["damages"]) {
    std::printf("DAMAGED  %s: %s\n", damage["where"].get<std::string>().c_str(),
                damage["what"].get<std::string>().c_str());
  }
  std::printf("%s  version %ld, root %s: %ld tiles and %ld deltas, %s read\n",
              checked["damages"].empty() ? "ok" : "DAMAGED", static_cast<long>(checked["version"]),
              checked["root"].get<std::string>().substr(0, 12).c_str(), static_cast<long>(checked["tiles"]),
              static_cast<long>(checked["deltas"]), mebibytes(checked["bytes"]).c_str());
}

}  // namespace

Action add_verify(CLI::App& app) {
  struct Options {
    std::string directory;
    int threads = 0;
    bool json = false;
  };
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "The model directory")->required();
  app.add_option("--threads", options->threads, "Threads; 0: one per core")->check(integer(0, 1024));
  app.add_flag("--json", options->json, "Print what was found as JSON");
  app.footer(
      "Exit codes: 0 everything is what the history says, or there is none yet; 1 something is damaged, or could not "
      "be read.");
  return [options] {
    bool damaged = false;
    const int code = report(
        "verify", options->json,
        [&]() -> Result<Json> {
          ProgressBar bar;
          const auto checked =
              LATHE_TRY(history::verify(io::posix_env(), options->directory, options->threads, bar.callback()));
          damaged = !checked.damages.empty();
          return to_json(checked);
        },
        print);
    return damaged ? 1 : code;
  };
}

}  // namespace lathe::cli
