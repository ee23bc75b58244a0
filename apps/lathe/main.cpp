#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <map>
#include <string>
#include <vector>

#include "base/heap.h"
#include "base/nearest.h"
#include "commands.h"

namespace {

using Add = lathe::cli::Action (*)(CLI::App&);
struct Command {
  const char *name, *help;
  Add add;
};
constexpr Command kCommands[] = {
    {"serve", "Serve a model directory over the OpenAI API, and learn", lathe::cli::add_serve},
    {"attach", "Teach the model that a running vLLM serves, in its own memory", lathe::cli::add_attach},
    {"chat", "Talk to a running server, and correct it with /fix", lathe::cli::add_chat},
    {"learn", "Teach a running server one better answer", lathe::cli::add_learn},
    {"train", "Fine-tune a model directory on a data set, in place", lathe::cli::add_train},
    {"sync", "Make a new version durable: of a running server, or of another directory", lathe::cli::add_sync},
    {"log", "List the versions of a model directory", lathe::cli::add_log},
    {"inspect", "Show what is in a model directory, a safetensors file, an optimizer state or a delta",
     lathe::cli::add_inspect},
    {"verify", "Check every byte of a model directory and its history", lathe::cli::add_verify},
    {"rollback", "Put back the weights of an earlier version", lathe::cli::add_rollback},
    {"convert", "Write a copy of a model directory in a type that is served", lathe::cli::add_convert},
    {"export", "Write a version as a separate directory", lathe::cli::add_export},
    {"publish", "Give readers a complete, unchanging directory through a link", lathe::cli::add_publish},
    {"push", "Bring a copy elsewhere up to date by sending what changed", lathe::cli::add_push},
    {"receive", "The remote side of a push, which starts it", lathe::cli::add_receive},
    {"prune", "Keep fewer old versions, by merging", lathe::cli::add_prune},
    {"doctor", "Say what would fail, and the remedy, before anything is touched", lathe::cli::add_doctor},
    {"bench", "Measure how fast this machine serves and teaches a model", lathe::cli::add_bench},
    {"config", "Print the settings of a server and where they come from", lathe::cli::add_config},
};

// The subcommand that was being parsed.
const CLI::App* innermost(const CLI::App* app) {
  while (!app->get_subcommands().empty()) app = app->get_subcommands().front();
  return app;
}

std::string full_name(const CLI::App* app) {
  return app->get_parent() ? full_name(app->get_parent()) + " " + app->get_name() : "lathe";
}

// What follows an argument that was not expected: the option that was meant, if one is near.
std::string hint(const CLI::App* app, const std::string& word) {
  std::vector<std::string> known;
  for (const CLI::Option* option : app->get_options()) {
    for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
  }
  for (const CLI::App* command : app->get_subcommands([](const CLI::App*) { return true; }))
    known.push_back(command->get_name());
  return lathe::did_you_mean(word.substr(0, word.find('=')), known);
}

// One line, and where to read on.
std::string usage_error(const CLI::App* app, const CLI::Error& error) {
  const CLI::App* const command = innermost(app);
  std::string message = error.what();
  if (const auto extra = command->remaining(); !extra.empty()) {
    const bool option = extra.front().starts_with('-');
    message = (option ? "there is no option '" : "'" + std::string()) + extra.front() +
              (option ? "'" : "' was not expected") + hint(command, extra.front());
  }
  const std::string name = full_name(command);
  return name + ": " + message + "\n`" + name + " --help` says how it is used\n";
}

int no_such_command(const std::string& word) {
  std::vector<std::string> names;
  for (const Command& command : kCommands) names.push_back(command.name);
  std::fprintf(stderr, "lathe: there is no command '%s'%s\n`lathe --help` lists them\n", word.c_str(),
               lathe::did_you_mean(word, names).c_str());
  return 2;
}

// What people type instead of the flags: `lathe help`, `lathe help serve`, `lathe version`.
std::vector<std::string> words_of(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty()) return words;
  if (words[0] == "version" && words.size() == 1) words[0] = "--version";
  if (words[0] == "help") {
    words.erase(words.begin());
    words.resize(std::min<size_t>(words.size(), 1));
    words.push_back("--help");
  }
  return words;
}

// A name that is empty, as of a variable that was not set, never names anything. Returns it, or nothing.
std::string empty_argument(const CLI::App& command) {
  for (const CLI::Option* option : command.get_options()) {
    const auto& given = option->results();
    if (option->get_positional() && std::find(given.begin(), given.end(), "") != given.end()) return option->get_name();
  }
  return "";
}

bool is_command(const std::string& word) {
  return std::any_of(std::begin(kCommands), std::end(kCommands), [&](const Command& c) { return word == c.name; });
}

// The exit code.
int run(std::vector<std::string> words) {
  CLI::App app{"lathe: a language model server that learns while it serves", "lathe"};
  app.set_version_flag("--version", LATHE_VERSION);
  app.require_subcommand(1);
  app.failure_message(usage_error);
  std::map<CLI::App*, lathe::cli::Action> actions;
  for (const Command& command : kCommands) {
    CLI::App* sub = app.add_subcommand(command.name, command.help);
    actions[sub] = command.add(*sub);
  }
  if (words.empty()) {
    std::fprintf(stderr, "%s\nlathe: name a command\n", app.help().c_str());
    return 2;
  }
  if (!words[0].starts_with('-') && !is_command(words[0])) return no_such_command(words[0]);
  std::reverse(words.begin(), words.end());  // as the library takes them
  try {
    app.parse(std::move(words));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  CLI::App* const command = app.get_subcommands().front();
  if (const std::string name = empty_argument(*command); !name.empty()) {
    std::fprintf(stderr, "lathe %s: %s must not be empty\n", command->get_name().c_str(), name.c_str());
    return 2;
  }
  return actions.at(command)();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    lathe::set_up_heap();
    return run(words_of(argc, argv));
  } catch (const std::exception& error) {  // of a library, where no command expects one
    std::fprintf(stderr, "lathe: %s\n", error.what());
    return 1;
  }
}
