#include "delta/paths.h"

namespace lathe::delta {

Result<std::unique_ptr<io::FileLock>> lock_directory(io::Env& env, const std::string& directory) {
  const Paths paths(directory);
  if (!LATHE_TRY(env.exists(directory))) return not_found("there is no model directory " + directory);
  LATHE_TRY(env.create_directories(paths.lathe));
  auto lock = env.lock(paths.owner_lock, io::IfLocked::kFail);
  if (!lock.ok() && lock.error().code == Code::kConflict) {
    return Error{Code::kConflict, "another lathe process works on " + directory + "; stop it, or talk to its server"};
  }
  return lock;
}

Result<std::unique_ptr<io::FileLock>> lock_history(io::Env& env, const std::string& directory) {
  const Paths paths(directory);
  if (!LATHE_TRY(env.exists(directory))) return not_found("there is no model directory " + directory);
  LATHE_TRY(env.create_directories(paths.lathe));
  return env.lock(paths.history_lock, io::IfLocked::kWait);
}

}  // namespace lathe::delta
