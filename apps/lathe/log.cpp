#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "commands.h"
#include "history/history.h"
#include "report.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

Result<Json> entry(const history::History& history, const history::DeltaFile& delta) {
  const delta::DeltaReader* reader = LATHE_TRY(history.reader(delta));
  history::VersionRecord record;
  if (const auto* attachment = reader->find_attachment(history::kRecordName)) {
    record = history::parse_record(LATHE_TRY(reader->attachment_text(*attachment)));
  }
  Json json = {{"version", delta.to},
               {"previous", delta.from},
               {"time_ms", reader->info().time_ms},
               {"kind", record.kind},
               {"note", record.note},
               {"root", reader->info().to_root.hex()},
               {"delta_bytes", reader->file_bytes()},
               {"tiles_changed", reader->tiles().size()},
               {"optimizer", reader->find_attachment(history::kOptimizerName) != nullptr}};
  if (record.restores) json["restores"] = *record.restores;
  return json;
}

Result<Json> to_json(const history::History& history) {
  Json json = {
      {"version", history.head().version}, {"root", history.head().state.root().hex()}, {"versions", Json::array()}};
  for (auto delta = history.deltas().rbegin(); delta != history.deltas().rend(); ++delta) {
    json["versions"].push_back(LATHE_TRY(entry(history, *delta)));
  }
  if (!history.deltas().empty()) json["first"] = history.deltas().front().from;
  return json;
}

Result<Json> read_log(const std::string& directory) {
  io::Env& env = io::posix_env();
  const auto lock = LATHE_TRY(delta::lock_history_to_read(env, directory));
  const auto history = LATHE_TRY(history::History::open_to_read(env, directory));
  if (history) return to_json(*history);
  return Json{{"version", 0}, {"root", nullptr}, {"versions", Json::array()}};
}

void print(const Json& log) {
  for (const Json& v : log["versions"]) {
    const bool restores = v.contains("restores");
    std::printf("%-8ld %s  %s  %10s  %s%s  %s\n", static_cast<long>(v["version"]), local_time(v["time_ms"]).c_str(),
                v["root"].get<std::string>().substr(0, 12).c_str(), mebibytes(v["delta_bytes"]).c_str(),
                v["kind"].get<std::string>().c_str(),
                restores ? (" to " + std::to_string(v["restores"].get<int64_t>())).c_str() : "",
                v["note"].get<std::string>().c_str());
  }
  if (log.contains("first")) {
    std::printf("%-8ld what was there before\n", static_cast<long>(log["first"]));
  } else {
    std::printf("%-8ld no history yet\n", static_cast<long>(log["version"]));
  }
}

}  // namespace

Action add_log(CLI::App& app) {
  struct Options {
    std::string directory;
    bool json = false;
  };
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "The model directory")->required();
  app.add_flag("--json", options->json, "Print the history as JSON");
  return [options] {
    return report(
        "log", options->json, [&] { return read_log(options->directory); }, print);
  };
}

}  // namespace lathe::cli
