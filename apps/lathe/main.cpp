#include <CLI/CLI.hpp>
#include <map>

#include "base/heap.h"
#include "commands.h"

int main(int argc, char** argv) {
  lathe::set_up_heap();
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
      {"attach", "Teach the model that a running vLLM serves, in its own memory", lathe::cli::add_attach},
      {"chat", "Talk to a running server, and correct it with /fix", lathe::cli::add_chat},
      {"learn", "Teach a running server one better answer", lathe::cli::add_learn},
      {"train", "Fine-tune a model directory on a data set, in place", lathe::cli::add_train},
      {"sync", "Make a new version durable: of a running server, or of another directory", lathe::cli::add_sync},
      {"log", "List the versions of a model directory", lathe::cli::add_log},
      {"inspect", "Say what is in a model directory, a safetensors file, an optimizer state or a delta",
       lathe::cli::add_inspect},
      {"verify", "Check every byte of a model directory and its history", lathe::cli::add_verify},
      {"rollback", "Put back the weights of an earlier version", lathe::cli::add_rollback},
      {"export", "Write a version as a directory of its own", lathe::cli::add_export},
      {"publish", "Give readers a complete, unchanging directory behind a link", lathe::cli::add_publish},
      {"push", "Bring a copy elsewhere up to date by what changed", lathe::cli::add_push},
      {"receive", "The far side of a push, started by it", lathe::cli::add_receive},
      {"prune", "Keep fewer old versions, by merging", lathe::cli::add_prune},
      {"doctor", "Say what would fail, and how to mend it, before anything is touched", lathe::cli::add_doctor},
      {"bench", "Measure how fast this machine serves and teaches a model", lathe::cli::add_bench},
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
