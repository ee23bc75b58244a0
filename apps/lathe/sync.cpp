#include "history/sync.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/units.h"
#include "client.h"
#include "commands.h"
#include "delta/paths.h"
#include "history/import.h"
#include "model/compare.h"
#include "progress_bar.h"
#include "report.h"
#include "value_checks.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string directory, from, server, api_key, note;
  bool materialize = false, round = false, not_finite = false, json = false;
  int threads = 0;
};

Json to_json(const history::SyncReport& report) {
  return {{"version", report.version},
          {"previous", report.previous},
          {"root", report.root.hex()},
          {"delta_bytes", report.delta_bytes},
          {"bytes_written", report.bytes_written},
          {"tiles_changed", report.tiles_changed},
          {"tiles", report.tiles},
          {"shards_rewritten", report.shards_rewritten},
          {"shards_in_place", report.shards_in_place},
          {"durable_seconds", report.durable_seconds},
          {"seconds", report.seconds}};
}

// The configurations must be of one model: a version holds weights only, and would mean something else under the other.
// Says whether head and embedding are tied.
Result<std::optional<history::Tie>> compare_configurations(io::Env& env, const Options& options) {
  const std::string here = options.directory + "/config.json", there = options.from + "/config.json";
  if (!LATHE_TRY(env.exists(here))) return std::optional<history::Tie>();
  const std::string config_json = LATHE_TRY(io::read_text(env, here));
  if (LATHE_TRY(env.exists(there))) {
    const std::string other_json = LATHE_TRY(io::read_text(env, there));
    const auto differing = LATHE_TRY(model::differences(config_json, other_json).at(there));
    std::string names;
    for (const std::string& name : differing) names += (names.empty() ? "" : ", ") + name;
    if (!differing.empty()) {
      return invalid_argument(there + " is of another model than " + here + ": " + names +
                              (differing.size() > 1 ? " differ" : " differs") +
                              "; a version holds weights only, so the configurations must say the same");
    }
  } else if (!options.json) {
    std::fprintf(stderr, "%s has no config.json: names, shapes and types of tensors are all that is compared\n",
                 options.from.c_str());
  }
  const auto config = model::ModelConfig::parse(config_json);
  if (!config.ok() || !config->tie_embeddings) return std::optional<history::Tie>();
  return std::optional(history::Tie{.head = "lm_head.weight", .embedding = config->prefix + "embed_tokens.weight"});
}

Result<Json> import(const Options& options) {
  io::Env& env = io::posix_env();
  LATHE_TRY(delta::check_model_directory(env, options.directory));
  LATHE_TRY(delta::check_model_directory(env, options.from));
  const auto tie = LATHE_TRY(compare_configurations(env, options));
  const auto lock = LATHE_TRY(delta::lock_directory(env, options.directory));
  const auto tensors = LATHE_TRY(history::DirectoryTensors::open(
      env, options.from, options.directory, {.round = options.round, .not_finite = options.not_finite, .tie = tie}));
  ProgressBar bar;
  history::SyncOptions how;
  how.record.kind = "import";
  how.record.note = options.note.empty() ? "from " + options.from : options.note;
  how.materialize = options.materialize;
  how.apply = {.threads = options.threads, .progress = bar.callback()};
  return to_json(LATHE_TRY(history::sync(env, options.directory, tensors, {}, how)));
}

Result<Json> sync_server(const Options& options) {
  std::string server = options.server;
  if (server.empty() && !options.directory.empty()) server = running_server(io::posix_env(), options.directory);
  if (server.empty() && !options.directory.empty()) {
    return not_found("no server works on " + options.directory +
                     "; name a directory with new weights (--from), or a server elsewhere (--server)");
  }
  auto client = LATHE_TRY(Client::create(server.empty() ? "http://127.0.0.1:8077" : server, options.api_key));
  return client.post("/v1/sync", Json::object());
}

void print(const Json& result) {
  const auto version = static_cast<long>(result.value("version", int64_t{0}));
  if (result.value("delta_bytes", uint64_t{0}) == 0) {
    std::printf("nothing differs from version %ld, which is on disk\n", version);
    return;
  }
  std::printf("version %ld is on disk: %s of changes, durable after %.2f s; %s written to shards, after %.2f s\n",
              version, mebibytes(result.value("delta_bytes", uint64_t{0})).c_str(),
              result.value("durable_seconds", 0.0), mebibytes(result.value("bytes_written", uint64_t{0})).c_str(),
              result.value("seconds", 0.0));
}

}  // namespace

Action add_sync(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "The model directory; without it, the one that --server serves");
  app.add_option("--from", options->from,
                 "Make MODEL_DIR equal to the weights of this directory, as a new version: the output of any trainer");
  app.add_flag("--round", options->round,
               "With --from: take over tensors in F32 or F16, rounded to MODEL_DIR's types, instead of refusing them");
  app.add_flag("--allow-not-finite", options->not_finite,
               "With --from: take over NaN and infinite numbers too, as the masks of some models hold them");
  app.add_option("--server", options->server, "Address of a `lathe serve` whose weights are made durable now")
      ->envname("LATHE_SERVER");
  app.add_option("--api-key", options->api_key, "The server's key, if it has one")->envname("LATHE_API_KEY");
  app.add_option("--note", options->note, "A line for `lathe log`");
  app.add_flag("--materialize", options->materialize, "Replace shards that are symbolic links by copies first");
  app.add_option("--threads", options->threads, "Threads; 0: one per core")->check(integer(0, 1024));
  app.add_flag("--json", options->json, "Print the result as JSON");
  app.callback([options] {
    if (!options->from.empty() && options->directory.empty()) throw CLI::RequiredError("MODEL_DIR");
    if (options->round && options->from.empty()) throw CLI::RequiresError("--round", "--from");
    if (options->not_finite && options->from.empty()) throw CLI::RequiresError("--allow-not-finite", "--from");
  });
  return [options] {
    return report(
        "sync", options->json, [&] { return options->from.empty() ? sync_server(*options) : import(*options); }, print);
  };
}

}  // namespace lathe::cli
