// Responses of every route, from native types to JSON, in OpenAI's shapes.
//
// Threads: pure functions. Protocol page: docs/protocols/http.md
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "store/store.h"

namespace lathe::api {

// What every generation response carries.
struct ResponseHead {
  std::string id;  // chatcmpl-... or cmpl-...
  std::string model;
  int64_t created = 0;  // seconds since 1970
  int64_t version = 0;  // of the weights; "system_fingerprint" is "lathe-v<version>"
};

struct LogprobEntry {
  std::string token;
  float logprob = 0;
  std::vector<std::pair<std::string, float>> top;
};

struct Choice {
  int64_t index = 0;
  std::string text;
  std::string finish_reason;  // "stop" or "length"; empty while streaming
  std::optional<std::vector<LogprobEntry>> logprobs;
  size_t logprobs_without_value = 0;  // leading entries (echoed first tokens) that nothing predicts
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
};

std::string assistant_message(const std::string& text);
std::string chat_response(const ResponseHead& head, const std::vector<Choice>& choices, const Usage& usage);
std::string completion_response(const ResponseHead& head, const std::vector<Choice>& choices, const Usage& usage);

// One server-sent event's data. `first` carries the role. `usage`: so far, if that is asked for. The chunk of
// usage_chunk() has no choices.
std::string chat_chunk(const ResponseHead& head, const Choice& delta, bool first, const std::optional<Usage>& usage);
std::string completion_chunk(const ResponseHead& head, const Choice& delta, const std::optional<Usage>& usage);
std::string usage_chunk(const ResponseHead& head, const Usage& usage, bool chat);

std::string model_list(const std::string& model, int64_t created, int64_t max_context);
std::string model_card(const std::string& model, int64_t created, int64_t max_context);
std::string token_list(const std::vector<int32_t>& tokens, int64_t max_context);
std::string prompt_text(const std::string& text);

// A lesson: what was taught, what became of it, and whether it is on disk. `durable_version`: of the directory.
// `tensors`: for the one job that is asked for.
std::string job_body(const store::Job& job, int64_t durable_version,
                     const std::vector<store::TensorChange>& tensors = {});
std::string job_list(const std::vector<store::Job>& jobs, bool more, int64_t durable_version);
// A chat completion that was kept, in OpenAI's shape for stored ones, with the conversation and the weights' version.
std::string kept_completion(const store::Completion& completion);
std::string completion_list(const std::vector<store::Completion>& completions);

// A version that can be restored.
struct VersionEntry {
  int64_t version = 0, first = 0;  // the steps in it
  std::string kind;
  std::vector<std::string> jobs;
  std::optional<int64_t> restores;
  std::string note;
  int64_t steps = 0;
  double created_at = 0, loss = 0, learning_rate = 0, changed_fraction = 0;
  bool durable = true;
};
struct VersionList {
  int64_t live = 0, on_disk = 0;
  std::vector<VersionEntry> entries;
  bool more = false;
  std::vector<store::Version> lost;  // and gone for good
};
std::string version_list(const VersionList& list);

// Of a sync, a rollback or a redo.
struct SyncResult {
  int64_t version = 0;
  std::optional<int64_t> restores;  // of a rollback or redo: whose weights these are
  bool redo = false;
  uint64_t delta_bytes = 0;    // of the delta file; 0 if the version was durable before this server started
  uint64_t bytes_written = 0;  // into shards
  int64_t shards_written = 0;
  double durable_seconds = 0;  // until the version could no longer be lost
  double seconds = 0;          // until the shards held it
};
std::string sync_body(const SyncResult& result);

struct Health {
  std::string model;
  int64_t version = 0, synced_version = 0;
  bool torn = false;  // the weights are of no version
  int64_t running = 0, waiting = 0, learning = 0;
  std::vector<std::string> lost = {};  // lessons that are gone and were not learned again
  double uptime_seconds = 0;
};
std::string health_body(const Health& health);

}  // namespace lathe::api
