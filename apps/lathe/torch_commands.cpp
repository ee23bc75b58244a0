// The commands that need LibTorch, as `lathe` knows them: it becomes lathe-torch, which parses what follows their
// names.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "commands.h"

namespace lathe::cli {
namespace {

// Threads of OpenMP spin between parallel regions. By default they do so for milliseconds, and two processes that share
// the cores, or one that serves while it learns, keep each other from working: decoding falls to a fortieth. A short
// spin keeps the speed when alone, and a run of training, which has one team, affords a longer one
// (docs/decisions/0004-short-spin.md). libgomp reads the variable when it is loaded, before main().
void spin_briefly(bool trains) {
  if (std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY")) return;
  ::setenv("GOMP_SPINCOUNT", trains ? "50000" : "5000", 0);
}

// glibc reads this one before main(), too: large blocks of its heap then come in huge pages (base/heap.h).
void ask_for_huge_pages() {
  ::setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", 0);
}

int become(const CLI::App& command) {
  spin_briefly(command.get_name() == "train");
  ask_for_huge_pages();
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error).replace_filename("lathe-torch");
  std::vector<std::string> words = command.remaining();
  words.insert(words.begin(), {"lathe", command.get_name()});
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  ::execv(program.c_str(), arguments.data());
  std::fprintf(stderr, "lathe: cannot start %s: %s; `lathe %s` needs it in the same folder\n", program.c_str(),
               std::strerror(errno), command.get_name().c_str());
  return 1;
}

Action hand_over(CLI::App& app) {
  app.set_help_flag();
  app.prefix_command();
  return [&app] { return become(app); };
}

}  // namespace

Action add_serve(CLI::App& app) {
  return hand_over(app);
}
Action add_attach(CLI::App& app) {
  return hand_over(app);
}
Action add_train(CLI::App& app) {
  return hand_over(app);
}
Action add_inspect(CLI::App& app) {
  return hand_over(app);
}
Action add_doctor(CLI::App& app) {
  return hand_over(app);
}
Action add_bench(CLI::App& app) {
  return hand_over(app);
}

}  // namespace lathe::cli
