#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>

#include "base/heap.h"
#include "commands.h"

namespace {

// Threads of OpenMP spin between parallel regions. By default they do so for milliseconds, and two processes that share
// the cores, or one that serves while it learns, keep each other from working: decoding falls to a fortieth. A short
// spin keeps the speed when alone, and a run of training, which has one team, affords a longer one
// (docs/decisions/0004-short-spin.md). libgomp reads the variable when it is loaded, before main().
void spin_briefly(char** argv) {
  if (std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY")) return;
  const bool trains = argv[1] != nullptr && std::strcmp(argv[1], "train") == 0;
  ::setenv("GOMP_SPINCOUNT", trains ? "50000" : "5000", 0);
  std::error_code error;  // on failure, here or there: go on as we are, only slower in company
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);  // named so that ps shows "lathe"
  if (!error) ::execv(program.c_str(), argv);
}

}  // namespace

int main(int argc, char** argv) {
  spin_briefly(argv);
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
