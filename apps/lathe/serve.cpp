#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "daemon/daemon.h"
#include "delta/paths.h"
#include "http/address.h"
#include "model/model.h"
#include "read_settings.h"

namespace lathe::cli {
namespace {

// What can be refused before anything is created in the directory.
Status check(const std::string& directory) {
  io::Env& env = io::posix_env();
  LATHE_TRY(delta::check_model_directory(env, directory));
  LATHE_TRY(model::read_config(env, directory));
  const std::string tokenizer = directory + "/tokenizer.json";
  if (!LATHE_TRY(env.exists(tokenizer))) return not_found("there is no " + tokenizer);
  return {};
}

}  // namespace

Action add_serve(CLI::App& app) {
  struct Options {
    std::string directory;
    config::Settings settings;
    config::AttachSettings foreign;
  };
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "A Hugging Face model directory with safetensors")->required();
  std::vector<std::string> foreign;
  for (const config::Setting& setting : config::attach_settings(options->foreign)) foreign.push_back(setting.name);
  const auto sources =
      std::make_shared<config::Sources>(app, config::server_settings(options->settings), std::move(foreign));
  return [options, sources] {
    if (!read_settings("serve", *sources)) return 2;
    Status served = check(options->directory);
    if (served.ok()) {
      served = daemon::serve(options->directory, options->settings, [&](int port) {
        std::printf("lathe serves %s at http://%s\n", options->directory.c_str(),
                    http::authority(options->settings.host, port).c_str());
        std::fflush(stdout);
      });
    }
    if (served.ok()) return 0;
    std::fprintf(stderr, "lathe serve: %s\n", served.error().message.c_str());
    return 1;
  };
}

}  // namespace lathe::cli
