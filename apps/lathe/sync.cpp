#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "client.h"
#include "commands.h"

namespace lathe::cli {

Run add_sync(CLI::App& app) {
  struct Options {
    std::string server = "http://127.0.0.1:8077", api_key;
  };
  const auto options = std::make_shared<Options>();
  app.add_option("--server", options->server, "Address of `lathe serve`")
      ->envname("LATHE_SERVER")
      ->capture_default_str();
  app.add_option("--api-key", options->api_key, "The server's key, if it has one")->envname("LATHE_API_KEY");
  return [options] {
    auto client = Client::create(options->server, options->api_key);
    const auto synced = client.ok() ? client->post("/v1/sync", nlohmann::ordered_json::object())
                                    : Result<nlohmann::ordered_json>(client.error());
    if (!synced.ok()) {
      std::fprintf(stderr, "lathe sync: %s\n", synced.error().message.c_str());
      return 1;
    }
    std::printf("version %ld is on disk: %.1f MiB written in %.2f s\n", static_cast<long>(synced->value("version", 0)),
                static_cast<double>(synced->value("bytes_written", uint64_t{0})) / (1 << 20),
                synced->value("seconds", 0.0));
    return 0;
  };
}

}  // namespace lathe::cli
