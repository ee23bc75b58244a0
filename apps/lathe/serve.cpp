#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "daemon/daemon.h"
#include "http/address.h"
#include "io/env.h"
#include "model/directory.h"
#include "read_settings.h"

namespace lathe::cli {

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
    Status served = model::check_directory(io::posix_env(), options->directory);
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
