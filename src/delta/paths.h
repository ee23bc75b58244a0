// Paths: every name that Lathe uses in a model directory. Format page: docs/formats/directory.md.
//
// Threads: a value.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "io/env.h"

namespace lathe::delta {

inline constexpr const char* kNew = ".lathe-new";  // ends the name of a file on its way; litter after a crash

struct Paths {
  explicit Paths(const std::string& model_directory)
      : directory(model_directory),
        lathe(directory + "/.lathe"),
        deltas(lathe + "/deltas"),
        incoming(lathe + "/incoming"),
        state(lathe + "/state.json"),
        journal(lathe + "/journal"),
        pushed(lathe + "/pushed.json"),
        server(lathe + "/server.json"),
        owner_lock(lathe + "/lock"),
        history_lock(lathe + "/history.lock") {}

  std::string shard(const std::string& file) const { return directory + "/" + file; }
  std::string delta(int64_t from, int64_t to) const { return deltas + "/" + delta_name(from, to); }
  static std::string delta_name(int64_t from, int64_t to) {
    return std::to_string(from) + "-" + std::to_string(to) + ".dlt";
  }

  std::string directory, lathe, deltas, incoming, state, journal, pushed, server, owner_lock, history_lock;
};

// kNotFound or kUnsupported, saying what it is instead (other_formats.h), if `directory` is no model directory with
// safetensors: nothing may be created in one that is not.
Status check_model_directory(io::Env& env, const std::string& directory);

// What `lathe publish` appends to its link's name for the directory of generations.
inline constexpr const char* kGenerations = ".generations";

// The lock of the one process that trains or serves the directory, for as long as it does: nobody else may make
// versions. kConflict if there is one; kInvalidArgument for a published generation, which must not change; else as
// check_model_directory().
Result<std::unique_ptr<io::FileLock>> lock_directory(io::Env& env, const std::string& directory);

// The lock of whoever reads or changes shards and deltas right now; waits for it. Taken after lock_directory, if both.
Result<std::unique_ptr<io::FileLock>> lock_history(io::Env& env, const std::string& directory);

// The same for one who only reads, and may not be able to write: makes no .lathe. Null if there is none, or no lock in
// it that could be taken.
Result<std::unique_ptr<io::FileLock>> lock_history_to_read(io::Env& env, const std::string& directory);

}  // namespace lathe::delta
