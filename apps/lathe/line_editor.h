// LineEditor: lines that a person types, with arrow keys, a history that outlives the program, and Ctrl-C; lines of a
// file or a pipe where standard input is no terminal.
//
// Why libedit: it does what readline does, and its licence (BSD) goes with this program's.
// Threads: one; while a line is read it has the terminal and SIGINT.
// Durability: the history's file is written after each line, with access for its owner alone: people type secrets.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace lathe::cli {

class LineEditor {
 public:
  // `history`: the name of the state_file() that keeps lines; empty: none does.
  LineEditor(std::string prompt, const std::string& history);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // The next line without its end. Nothing at the end of the input: Ctrl-D, or Ctrl-C twice; once drops what was
  // typed.
  std::optional<std::string> read();

 private:
  struct Terminal;
  std::string prompt_;
  std::unique_ptr<Terminal> terminal_;  // null: standard input is none
};

// $XDG_STATE_HOME/lathe/NAME or ~/.local/state/lathe/NAME, its directory made with access for its owner alone; empty
// where that cannot be.
std::string state_file(const std::string& name);

}  // namespace lathe::cli
