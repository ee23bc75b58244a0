#include "daemon/attach.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <memory>

#include "commands.h"

namespace lathe::cli {

Run add_attach(CLI::App& app) {
  struct Options {
    daemon::AttachOptions attach;
    config::Settings settings;
  };
  using daemon::OnDifference;
  const auto options = std::make_shared<Options>();
  daemon::AttachOptions& attach = options->attach;
  app.add_option("MODEL_DIR", attach.directory, "The model directory that vLLM serves (default: what vLLM says)");
  app.add_option("--vllm", attach.server.url, "Address of the vLLM server, http://host:port");
  app.add_option("--vllm-api-key", attach.server.api_key, "Key of the vLLM server")->envname("VLLM_API_KEY");
  app.add_option("--socket", attach.socket, "Socket of the plugin (default: what vLLM says)");
  app.add_option(
         "--on-difference", attach.on_difference,
         "If vLLM's weights are not those on disk: refuse, restore (make vLLM's as on disk) or adopt (make them a "
         "new version)")
      ->transform(CLI::CheckedTransformer(std::map<std::string, OnDifference>{
          {"refuse", OnDifference::kRefuse}, {"restore", OnDifference::kRestore}, {"adopt", OnDifference::kAdopt}}))
      ->default_str("refuse");
  app.add_option(
         "--tokens", attach.tokens,
         "Whose tokens to teach: ours (the directory's tokenizer and chat template) or server (vLLM's /tokenize)")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, daemon::Tokens>{{"ours", daemon::Tokens::kOurs}, {"server", daemon::Tokens::kServer}}))
      ->default_str("ours");
  app.add_flag(
      "--proxy", attach.proxy,
      "Pass vLLM's inference routes through, and keep the chat completions, so that they can be corrected by id");
  app.add_flag(
      "--live", attach.live,
      "Write beside running requests, which may see a mixture, and stop them only for a moment behind the write");
  app.set_config("--config", "", "Read options from this file (TOML or INI)");
  config::add_serving_options(app, options->settings);
  config::add_learning_options(app, options->settings);
  return [options] {
    if (options->attach.server.url.empty() && options->attach.socket.empty()) {
      std::fprintf(stderr, "lathe attach: name the server with --vllm http://host:port\n");
      return 2;
    }
    if (options->attach.server.url.empty() &&
        (options->attach.proxy || options->attach.tokens == daemon::Tokens::kServer)) {
      std::fprintf(stderr,
                   "lathe attach: --proxy and --tokens=server ask vLLM over HTTP; add --vllm http://host:port\n");
      return 2;
    }
    const Status done = daemon::attach(options->attach, options->settings, [&](int port) {
      std::printf("lathe teaches %s at http://%s:%d\n", options->attach.server.url.c_str(),
                  options->settings.host.c_str(), port);
      std::fflush(stdout);
    });
    if (done.ok()) return 0;
    std::fprintf(stderr, "lathe attach: %s\n", done.error().message.c_str());
    return 1;
  };
}

}  // namespace lathe::cli
