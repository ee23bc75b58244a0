// Sources: where settings come from. Flags win over the environment, the environment over the configuration file, the
// file over the defaults.
//
// A file is TOML without sections: `port = 8077`, `api-key = "..."`, lists in brackets. A name that is no setting, a
// value of another kind and a file that is not there are refused: what was meant must not be ignored in silence.
// Threads: one.
// Page: docs/configuration.md
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "config/settings.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace lathe::config {

enum class Source { kDefault, kFile, kEnvironment, kFlag };

class Sources {
 public:
  // Adds a flag per setting, and --config, to `app`, which outlives this. `foreign`: settings of other commands, to say
  // so of their names.
  Sources(CLI::App& app, std::vector<Setting> settings, std::vector<std::string> foreign = {});

  // After `app` has parsed: gives every setting its value. kInvalidArgument or kNotFound names the file and line, or
  // the variable, and the remedy.
  Status read();

  struct Origin {
    Source source = Source::kDefault;
    std::string where;  // "default", "FILE:LINE", "LATHE_PORT", "--port"
  };
  struct Entry {
    Setting setting;
    Origin origin;
  };
  // In the order of the table. Origins are those of the last read().
  const std::vector<Entry>& entries() const { return entries_; }
  // Things to say that are no errors, of the last read().
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  void add_flag(CLI::App& app, size_t index);
  Status read_file(const std::string& path);
  Error unknown(const std::string& where, const std::string& name) const;

  std::vector<Entry> entries_;
  std::vector<CLI::Option*> flags_;  // of entries_
  std::vector<std::string> foreign_;
  std::string file_;
  std::vector<std::string> warnings_;
};

}  // namespace lathe::config
