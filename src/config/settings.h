// Settings of the server, with their defaults, and the table of them. One struct, so that a program's whole behaviour
// can be printed and compared.
//
// Every setting has one name, in the table below: `max-running` is the flag --max-running, the variable
// LATHE_MAX_RUNNING and `max-running = 8` in a configuration file (sources.h).
// Threads: a value.
// Page: docs/configuration.md
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "base/result.h"

namespace lathe::config {

struct Settings {
  // Serving.
  std::string host = "127.0.0.1";
  int port = 8077;
  std::string api_key;
  std::vector<std::string> allowed_hosts;    // further names under which it is reached
  std::vector<std::string> allowed_origins;  // of web pages that may use it
  std::string served_name;                   // of the model in the API; empty: the directory's name
  int64_t max_running = 8;                   // answers generated at once
  int64_t max_waiting = 64;                  // requests queued; beyond, 429
  int64_t max_context = 0;                   // tokens of prompt and answer; 0: the model's limit
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
  std::string history = "lesson";   // what can be undone by itself: every lesson, or the lessons of an interval
  int64_t sync_seconds = 600;       // how long a change may wait to become durable (teach/teacher.h)
  int64_t lesson_memory = 0;        // MiB that a lesson may take in addition to the model; 0: what is free
  bool materialize = false;         // replace shards that are symbolic links by copies, instead of refusing to sync
};

// What `lathe attach` has in addition.
struct AttachSettings {
  std::string vllm, vllm_api_key;        // the server; its key
  std::string socket;                    // of the plugin; empty: the server says
  std::string on_difference = "refuse";  // if its weights are not those on disk
  std::string tokens = "ours";           // whose tokens are taught
  bool proxy = false;                    // pass its inference routes through
  bool live = false;                     // write while requests run
};

// One row of the table: a setting's name, what it is for, what it may be, and where its value is.
struct Setting {
  std::string name;
  std::string group, help;
  std::variant<std::string*, int*, int64_t*, double*, bool*, std::vector<std::string>*> value;
  double lowest = -std::numeric_limits<double>::infinity(), highest = -lowest;  // of numbers
  std::vector<std::string> choices = {};                                        // of texts; empty: any
  bool secret = false;                                                          // never shown
  std::string other_variable = {};                                              // instead of LATHE_...

  std::string flag() const { return "--" + name; }
  std::string variable() const;

  // Takes a value as it is written in a flag or a variable; a list with commas. kInvalidArgument says what it may be,
  // and changes nothing.
  Status set(const std::string& text) const;
  Status set(const std::vector<std::string>& list) const;  // of a list
  // The value as set() takes it.
  std::string text() const;
};

// The table. The values are those of `settings`, which outlives it.
std::vector<Setting> server_settings(Settings& settings);        // of `lathe serve` and `lathe attach`
std::vector<Setting> attach_settings(AttachSettings& settings);  // of `lathe attach` alone

}  // namespace lathe::config
