#include <CLI/CLI.hpp>
#include <map>

#include "commands.h"

int main(int argc, char** argv) {
  CLI::App app{"lathe: a language model server that learns while it serves"};
  app.set_version_flag("--version", LATHE_VERSION);
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::help);

  using Add = lathe::cli::Run (*)(CLI::App&);
  struct Command {
    const char *name, *help;
    Add add;
  };
  static constexpr Command kCommands[] = {
      {"serve", "Serve a model directory over the OpenAI API, and learn", lathe::cli::add_serve},
      {"rollback", "Put back the weights that the last sync replaced", lathe::cli::add_rollback},
  };
  std::map<CLI::App*, lathe::cli::Run> runs;
  for (const Command& command : kCommands) {
    CLI::App* sub = app.add_subcommand(command.name, command.help);
    runs[sub] = command.add(*sub);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return runs.at(app.get_subcommands().front())();
}
