#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "checkpoint/sync.h"
#include "commands.h"

namespace lathe::cli {
namespace {

Result<checkpoint::SyncReport> roll_back(const std::string& directory) {
  io::Env& env = io::posix_env();
  const auto lock = LATHE_TRY(checkpoint::lock_directory(env, directory));
  LATHE_TRY(checkpoint::recover(env, directory));
  return checkpoint::rollback(env, directory);
}

}  // namespace

Run add_rollback(CLI::App& app) {
  const auto directory = std::make_shared<std::string>();
  app.add_option("MODEL_DIR", *directory, "The model directory; of a running server, use POST /v1/rollback")
      ->required();
  return [directory] {
    const auto report = roll_back(*directory);
    if (!report.ok()) {
      std::fprintf(stderr, "lathe rollback: %s\n", report.error().message.c_str());
      return 1;
    }
    std::printf("%s now holds version %ld: %ld shards put back as they were before version %ld\n", directory->c_str(),
                static_cast<long>(report->now.version), static_cast<long>(report->shards_written),
                static_cast<long>(report->now.previous.value_or(0)));
    return 0;
  };
}

}  // namespace lathe::cli
