#include "daemon/attach.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "http/address.h"
#include "read_settings.h"

namespace lathe::cli {
namespace {

struct Options {
  std::string directory;
  config::Settings settings;
  config::AttachSettings attach;
};

// The choices are those of config::attach_settings().
daemon::AttachOptions attach_options(const Options& options) {
  const config::AttachSettings& attach = options.attach;
  return {.server = {.url = attach.vllm, .api_key = attach.vllm_api_key},
          .socket = attach.socket,
          .directory = options.directory,
          .on_difference = attach.on_difference == "restore" ? daemon::OnDifference::kRestore
                           : attach.on_difference == "adopt" ? daemon::OnDifference::kAdopt
                                                             : daemon::OnDifference::kRefuse,
          .tokens = attach.tokens == "server" ? daemon::Tokens::kServer : daemon::Tokens::kOurs,
          .proxy = attach.proxy,
          .live = attach.live};
}

// What is wrong with the settings together; empty: nothing.
std::string wrong(daemon::AttachOptions& options) {
  if (options.server.url.empty()) {
    if (options.socket.empty()) return "name the server with --vllm http://HOST:PORT";
    if (options.proxy || options.tokens == daemon::Tokens::kServer)
      return "--proxy and --tokens=server ask vLLM over HTTP; add --vllm http://HOST:PORT";
    return "";
  }
  const auto address = http::parse_address(options.server.url);
  if (!address.ok()) return "--vllm: " + address.error().message;
  options.server.url = address->url();
  return "";
}

}  // namespace

Action add_attach(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "The model directory that vLLM serves (default: what vLLM says)");
  std::vector<config::Setting> table = config::attach_settings(options->attach);
  for (config::Setting& setting : config::server_settings(options->settings)) table.push_back(std::move(setting));
  const auto sources = std::make_shared<config::Sources>(app, std::move(table));
  return [options, sources] {
    if (!read_settings("attach", *sources)) return 2;
    daemon::AttachOptions attach = attach_options(*options);
    if (const std::string fault = wrong(attach); !fault.empty()) {
      std::fprintf(stderr, "lathe attach: %s\n", fault.c_str());
      return 2;
    }
    const Status done = daemon::attach(attach, options->settings, [&](int port) {
      const std::string& server = attach.server.url.empty() ? attach.socket : attach.server.url;
      std::printf("lathe teaches %s at http://%s\n", server.c_str(),
                  http::authority(options->settings.host, port).c_str());
      std::fflush(stdout);
    });
    if (done.ok()) return 0;
    std::fprintf(stderr, "lathe attach: %s\n", done.error().message.c_str());
    return 1;
  };
}

}  // namespace lathe::cli
