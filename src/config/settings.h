// Settings of the server, with their defaults. One struct, so that a program's whole behaviour can be printed and
// compared.
//
// Sources, later ones win: defaults, a configuration file (--config), environment (LATHE_...), flags.
// Threads: a value.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace CLI {
class App;
}

namespace lathe::config {

struct Settings {
  // Serving.
  std::string host = "127.0.0.1";
  int port = 8077;
  std::string api_key;
  std::string served_name;   // of the model in the API; empty: the directory's name
  int64_t max_running = 8;   // answers generated at once
  int64_t max_waiting = 64;  // requests queued; beyond, 429
  int64_t max_context = 0;   // tokens of prompt and answer; 0: the model's limit
  int64_t max_body_bytes = 8 << 20;
  int http_threads = 32;
  int compute_threads = 0;      // 0: one per core
  std::string device = "auto";  // a GPU if there is one; or cpu, cuda, cuda:N

  // Learning.
  std::string optimizer = "apollo_mini";
  double learning_rate = 2e-5;  // means what it means for AdamW
  int64_t steps = 12;           // at most, per correction
  double until_loss = 0.05;     // a correction stops when its loss is below
  bool train_embeddings = true;
  int64_t keep_completions = 1000;  // latest answers kept so that they can be corrected by name; 0: none
  int64_t max_learning = 16;        // jobs queued; beyond, 429
  int64_t sync_seconds = 600;       // how often changed weights become durable; 0: only on demand and at shutdown
  bool materialize = false;         // replace shards that are symbolic links by copies, instead of refusing to sync
};

// Options for every field, grouped for --help.
void add_serving_options(CLI::App& app, Settings& settings);
void add_learning_options(CLI::App& app, Settings& settings);

}  // namespace lathe::config
