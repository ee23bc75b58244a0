#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "read_settings.h"
#include "value_checks.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string command = "serve";
  bool json = false;
  config::Settings settings;
  config::AttachSettings attach;
};

std::string shown(const config::Setting& setting) {
  const std::string text = setting.text();
  if (setting.secret) return text.empty() ? "(none)" : "(set, not shown)";
  return text.empty() ? "(none)" : text;
}

Json to_json(const config::Sources::Entry& entry) {
  constexpr const char* kSources[] = {"default", "file", "environment", "flag"};
  Json json = {{"source", kSources[static_cast<int>(entry.origin.source)]}, {"where", entry.origin.where}};
  if (entry.setting.secret) {
    json["set"] = !entry.setting.text().empty();
  } else {
    json["value"] = entry.setting.text();
  }
  return json;
}

bool is_of(const std::vector<config::Setting>& table, const config::Setting& setting) {
  return std::any_of(table.begin(), table.end(), [&](const auto& row) { return row.name == setting.name; });
}

int print(Options& options, config::Sources& sources) {
  const bool attaches = options.command == "attach";
  const auto vllm = config::attach_settings(options.attach);
  for (const auto& entry : sources.entries()) {
    if (attaches || !is_of(vllm, entry.setting)) continue;
    if (entry.origin.source == config::Source::kFlag || entry.origin.source == config::Source::kFile) {
      std::fprintf(stderr, "lathe config: %s: '%s' is a setting of `lathe attach`; use `lathe config print attach`\n",
                   entry.origin.where.c_str(), entry.setting.name.c_str());
      return 2;
    }
  }
  Json json = Json::object();
  for (const auto& entry : sources.entries()) {
    if (!attaches && is_of(vllm, entry.setting)) continue;
    json[entry.setting.name] = to_json(entry);
    if (!options.json) {
      std::printf("%-18s %-24s %s\n", entry.setting.name.c_str(), shown(entry.setting).c_str(),
                  entry.origin.where.c_str());
    }
  }
  if (options.json) std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  return 0;
}

}  // namespace

Action add_config(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App* const shows = app.add_subcommand("print", "Print each setting and where its value comes from");
  app.require_subcommand(1);
  shows->add_option("COMMAND", options->command, "Whose settings: serve or attach")
      ->check(one_of({"serve", "attach"}))
      ->capture_default_str();
  shows->add_flag("--json", options->json, "Print them as JSON");
  std::vector<config::Setting> table = config::server_settings(options->settings);
  for (config::Setting& setting : config::attach_settings(options->attach)) table.push_back(std::move(setting));
  const auto sources = std::make_shared<config::Sources>(*shows, std::move(table));
  return [options, sources] { return read_settings("config", *sources) ? print(*options, *sources) : 2; };
}

}  // namespace lathe::cli
