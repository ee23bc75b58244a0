#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "daemon/daemon.h"

namespace lathe::cli {

Run add_serve(CLI::App& app) {
  struct Options {
    std::string directory;
    config::Settings settings;
  };
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "A Hugging Face model directory with safetensors")->required();
  app.set_config("--config", "", "Read options from this file (TOML or INI)");
  config::add_serving_options(app, options->settings);
  config::add_learning_options(app, options->settings);
  return [options] {
    const Status served = daemon::serve(options->directory, options->settings, [&](int port) {
      std::printf("lathe serves %s at http://%s:%d\n", options->directory.c_str(), options->settings.host.c_str(),
                  port);
      std::fflush(stdout);
    });
    if (served.ok()) return 0;
    std::fprintf(stderr, "lathe serve: %s\n", served.error().message.c_str());
    return 1;
  };
}

}  // namespace lathe::cli
