#include "delta/paths.h"

#include <cerrno>

#include "delta/other_formats.h"

namespace lathe::delta {

Status check_model_directory(io::Env& env, const std::string& directory) {
  if (!LATHE_TRY(env.exists(directory))) return not_found("there is no model directory " + directory);
  if (!LATHE_TRY(env.stat(directory)).is_directory) return is_a_file(env, directory);
  for (const char* file : {"model.safetensors", "model.safetensors.index.json"}) {
    if (LATHE_TRY(env.exists(directory + "/" + file))) return {};
  }
  return no_safetensors(env, directory);
}

namespace {

Status refuse_generation(io::Env& env, std::string directory) {
  while (directory.size() > 1 && directory.ends_with('/')) directory.pop_back();
  if (LATHE_TRY(env.stat(directory)).is_symlink) directory = LATHE_TRY(env.read_link(directory));
  if (!io::parent_directory(directory).ends_with(kGenerations)) return {};
  return invalid_argument(directory +
                          " is a published generation, which must not change; name the model directory that it was "
                          "published from");
}

}  // namespace

Result<std::unique_ptr<io::FileLock>> lock_directory(io::Env& env, const std::string& directory) {
  const Paths paths(directory);
  LATHE_TRY(check_model_directory(env, directory));
  LATHE_TRY(refuse_generation(env, directory));
  LATHE_TRY(env.create_directories(paths.lathe));
  auto lock = env.lock(paths.owner_lock, io::IfLocked::kFail);
  if (!lock.ok() && lock.error().code == Code::kConflict) {
    return Error{Code::kConflict, "another lathe process works on " + directory + "; stop it, or talk to its server"};
  }
  return lock;
}

Result<std::unique_ptr<io::FileLock>> lock_history(io::Env& env, const std::string& directory) {
  const Paths paths(directory);
  LATHE_TRY(check_model_directory(env, directory));
  LATHE_TRY(env.create_directories(paths.lathe));
  return env.lock(paths.history_lock, io::IfLocked::kWait);
}

Result<std::unique_ptr<io::FileLock>> lock_history_to_read(io::Env& env, const std::string& directory) {
  const Paths paths(directory);
  LATHE_TRY(check_model_directory(env, directory));
  if (!LATHE_TRY(env.exists(paths.lathe))) return std::unique_ptr<io::FileLock>();
  auto lock = env.lock(paths.history_lock, io::IfLocked::kWait);
  const bool refused = !lock.ok() && (lock.error().native == EACCES || lock.error().native == EROFS);
  if (refused && !LATHE_TRY(env.exists(paths.history_lock))) return std::unique_ptr<io::FileLock>();
  return lock;
}

}  // namespace lathe::delta
