#include "line_editor.h"

#include <fcntl.h>
#include <histedit.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <utility>

namespace lathe::cli {
namespace {

constexpr int kHistoryLines = 1000;

volatile sig_atomic_t interrupted = 0;

// While it lives, Ctrl-C interrupts the reading of a line instead of ending the program.
class CatchInterrupt {
 public:
  CatchInterrupt() {
    interrupted = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = 1; };  // without SA_RESTART: the read returns
    ::sigaction(SIGINT, &action, &before_);
  }
  ~CatchInterrupt() { ::sigaction(SIGINT, &before_, nullptr); }
  CatchInterrupt(const CatchInterrupt&) = delete;
  CatchInterrupt& operator=(const CatchInterrupt&) = delete;

 private:
  struct sigaction before_ {};
};

}  // namespace

struct LineEditor::Terminal {
  explicit Terminal(const std::string& text, std::string path)
      : prompt(text),
        file(std::move(path)),
        editor(::el_init("lathe", stdin, stdout, stderr)),
        lines(::history_init()) {
    HistEvent event;
    ::history(lines, &event, H_SETSIZE, kHistoryLines);
    ::history(lines, &event, H_SETUNIQUE, 1);
    if (!file.empty()) ::history(lines, &event, H_LOAD, file.c_str());
    ::el_set(editor, EL_CLIENTDATA, this);
    ::el_set(
        editor, EL_PROMPT, +[](EditLine* self) {
          void* terminal = nullptr;
          ::el_get(self, EL_CLIENTDATA, &terminal);
          return const_cast<char*>(static_cast<Terminal*>(terminal)->prompt.c_str());
        });
    ::el_set(editor, EL_HIST, ::history, lines);
    ::el_set(editor, EL_EDITOR, "emacs");
    ::el_set(editor, EL_SIGNAL, 0);
    ::el_source(editor, nullptr);  // ~/.editrc
  }
  ~Terminal() {
    ::history_end(lines);
    ::el_end(editor);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  void keep(const std::string& line) {
    if (line.find_first_not_of(" \n") == std::string::npos) return;
    HistEvent event;
    ::history(lines, &event, H_ENTER, line.c_str());
    if (file.empty()) return;
    // Made before the library opens it: what it makes, others may read until it has changed that.
    const int made = ::open(file.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (made < 0) return;
    ::fchmod(made, 0600);
    ::close(made);
    ::history(lines, &event, H_SAVE, file.c_str());
  }

  std::string prompt, file;
  EditLine* editor;
  History* lines;
};

LineEditor::LineEditor(std::string prompt, const std::string& history) : prompt_(std::move(prompt)) {
  if (::isatty(STDIN_FILENO) == 0 || ::isatty(STDOUT_FILENO) == 0) return;
  std::setlocale(LC_CTYPE, "");  // how many columns a character takes
  terminal_ = std::make_unique<Terminal>(prompt_, history.empty() ? "" : state_file(history));
}

LineEditor::~LineEditor() = default;

std::optional<std::string> LineEditor::read() {
  if (!terminal_) {
    std::printf("%s", prompt_.c_str());
    std::fflush(stdout);
    std::string line;
    if (std::getline(std::cin, line)) return line;
    std::printf("\n");  // the shell's prompt does not follow ours on one line
    return {};
  }
  std::fflush(stdout);
  const CatchInterrupt catching;
  bool again = false;  // Ctrl-C was pressed, and nothing was entered since
  for (;;) {
    int count = 0;
    const char* const text = ::el_gets(terminal_->editor, &count);
    if (interrupted) {
      ::el_reset(terminal_->editor);
      std::printf("\n");
      if (std::exchange(again, true)) return {};
      interrupted = 0;
      continue;
    }
    if (!text || count <= 0) {
      std::printf("\n");
      return {};
    }
    std::string line(text, static_cast<size_t>(count));
    while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
    terminal_->keep(line);
    return line;
  }
}

std::string state_file(const std::string& name) {
  const char* const state = std::getenv("XDG_STATE_HOME");
  const char* const home = std::getenv("HOME");
  std::filesystem::path directory;
  if (state && *state) {
    directory = state;
  } else if (home && *home) {
    directory = std::filesystem::path(home) / ".local/state";
  } else {
    return "";
  }
  directory /= "lathe";
  std::error_code error;
  std::filesystem::create_directories(directory.parent_path(), error);
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) return "";
  return directory / name;
}

}  // namespace lathe::cli
