#include "config/sources.h"

#include <sys/stat.h>

#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_WINDOWS_COMPAT 0
#include <toml++/toml.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <optional>

#include "base/nearest.h"
#include "io/env.h"

namespace lathe::config {
namespace {

bool is_flag(const Setting& setting) {
  auto* const* const value = std::get_if<bool*>(&setting.value);
  return value && !**value;  // what is on by default takes "true" or "false"
}

const char* kind(const Setting& setting) {
  constexpr const char* kKinds[] = {"TEXT", "INT", "INT", "NUMBER", "BOOL", "LIST"};  // as in Setting::value
  return kKinds[setting.value.index()];
}

// A value in a file as a flag would have it; nothing if it is of no kind that a setting has.
std::optional<std::string> text_of(const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return std::to_string(number->get());
  if (const auto* truth = node.as_boolean()) return truth->get() ? "true" : "false";
  if (const auto* number = node.as_floating_point()) {
    char text[32];
    std::snprintf(text, sizeof text, "%.17g", number->get());
    return text;
  }
  return {};
}

Status set_list(const Setting& setting, const toml::array& array) {
  std::vector<std::string> items;
  for (const toml::node& node : array) {
    if (!node.is_string()) return invalid_argument("must be a list of strings in double quotes");
    items.push_back(node.as_string()->get());
  }
  return setting.set(items);
}

Status set_from_file(const Setting& setting, const toml::node& node) {
  if (const auto* array = node.as_array()) return set_list(setting, *array);
  const bool list = std::holds_alternative<std::vector<std::string>*>(setting.value);
  const bool wants_text = list || std::holds_alternative<std::string*>(setting.value);
  const auto text = text_of(node);
  if (!text) return invalid_argument("must be one value");
  if (wants_text && !node.is_string()) return invalid_argument("is a string: put it in double quotes");
  if (!wants_text && node.is_string()) return invalid_argument("is not a string: write it without quotes");
  return list ? setting.set(std::vector<std::string>{*text}) : setting.set(*text);
}

}  // namespace

Sources::Sources(CLI::App& app, std::vector<Setting> settings, std::vector<std::string> foreign)
    : foreign_(std::move(foreign)) {
  app.add_option("--config", file_, "Read settings from this file, `name = value` in each line (TOML)")
      ->type_name("FILE")
      ->envname("LATHE_CONFIG");
  for (Setting& setting : settings) entries_.push_back({std::move(setting), {Source::kDefault, "default"}});
  for (size_t i = 0; i < entries_.size(); ++i) add_flag(app, i);
}

// Neither call gives the library a variable to write: it takes a text that is not const for one.
void Sources::add_flag(CLI::App& app, size_t index) {
  const Setting& setting = entries_[index].setting;
  const std::string help = setting.help + " [" + setting.variable() + "]";
  if (is_flag(setting)) {
    flags_.push_back(app.add_flag(setting.flag(), help)->group(setting.group));
    return;
  }
  CLI::Option* option = app.add_option(setting.flag(), help);
  option->type_name(kind(setting))->group(setting.group)->expected(1)->allow_extra_args(false);
  if (!setting.secret) option->default_str(setting.text());
  if (std::holds_alternative<std::vector<std::string>*>(setting.value))
    option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  flags_.push_back(option);
}

Error Sources::unknown(const std::string& where, const std::string& name) const {
  std::vector<std::string> names;
  for (const Entry& entry : entries_) names.push_back(entry.setting.name);
  const bool elsewhere = std::find(foreign_.begin(), foreign_.end(), name) != foreign_.end();
  return invalid_argument(where + ": there is no setting '" + name + "'" +
                          (elsewhere ? " of this command" : did_you_mean(name, names)));
}

Status Sources::read_file(const std::string& path) {
  const std::string text = LATHE_TRY(io::read_text(io::posix_env(), path));
  const toml::parse_result parsed = toml::parse(std::string_view(text));
  const auto at = [&](const toml::source_region& source) { return path + ":" + std::to_string(source.begin.line); };
  if (!parsed) {
    return invalid_argument(at(parsed.error().source()) + ": " + std::string(parsed.error().description()) +
                            "; a line is `name = value`, with strings in double quotes");
  }
  bool secret = false;
  for (const auto& [key, node] : parsed.table()) {
    const std::string name(key.str()), where = at(key.source());
    if (node.is_table() || node.is_array_of_tables())
      return invalid_argument(where + ": '" + name + "' is a section; settings are not in sections");
    const auto entry =
        std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.setting.name == name; });
    if (entry == entries_.end()) return unknown(where, name);
    const Status set = set_from_file(entry->setting, node);
    if (!set.ok()) return invalid_argument(where + ": '" + name + "' " + set.error().message);
    entry->origin = {Source::kFile, where};
    secret |= entry->setting.secret;
  }
  struct ::stat info {};
  if (secret && ::stat(path.c_str(), &info) == 0 && (info.st_mode & (S_IRWXG | S_IRWXO)) != 0)
    warnings_.push_back(path + " holds a key, and other users can read it: chmod 600 " + path);
  return {};
}

Status Sources::read() {
  warnings_.clear();
  if (!file_.empty()) LATHE_TRY(read_file(file_));
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Setting& setting = entries_[i].setting;
    const std::string variable = setting.variable();
    const char* const given = std::getenv(variable.c_str());
    if (given && *given) {
      const Status set = setting.set(given);
      if (!set.ok()) return invalid_argument(variable + " " + set.error().message);
      entries_[i].origin = {Source::kEnvironment, variable};
    }
    if (flags_[i]->count() == 0) continue;
    const std::vector<std::string> words = flags_[i]->results();
    const bool list = std::holds_alternative<std::vector<std::string>*>(setting.value);
    const Status set = list ? setting.set(words) : setting.set(words.back());
    if (!set.ok()) return invalid_argument(setting.flag() + " " + set.error().message);
    entries_[i].origin = {Source::kFlag, setting.flag()};
  }
  return {};
}

}  // namespace lathe::config
