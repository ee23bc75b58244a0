// Store: the examples, jobs, versions and latest chat completions of one model directory, in SQLite.
//
// Why: answers "what was taught, when, with what result"; weights are never in here, and the directory's version file
// is the truth about what is on disk.
// Threads: any; one connection, guarded by a mutex; calls take micro- to milliseconds.
// Durability: WAL with synchronous=FULL: a write is durable on return. But a completion is so only with the next other
// write: it survives the end of the process, perhaps not that of the machine, and costs no wait for the disk.
// Format: docs/formats/store.md; user_version numbers the schema, older files are migrated on open.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace lathe::store {

struct Job {
  std::string id;
  std::string state;         // queued, running, succeeded, failed
  std::string request_json;  // as received
  std::string result_json;   // empty until finished
  double created_at = 0;     // seconds since 1970
  double finished_at = 0;    // 0 until finished
};

struct Version {
  int64_t version = 0;
  std::string job_id;  // empty for a rollback
  double created_at = 0;
  double loss = 0;  // before the step that made it
  double learning_rate = 0;
  double changed_fraction = 0;
  bool synced = false;
};

// An answer that was given, kept so that it can be corrected.
struct Completion {
  std::string id;                 // chatcmpl-...
  int64_t version = 0;            // of the weights when it began
  std::string conversation_json;  // what was asked: {"messages", "tools", "chat_template_kwargs"}
  std::string answer_json;        // the assistant's message
  double created_at = 0;          // set when it is added
  std::string job_id;             // of its latest correction; empty: none
};

class Store {
 public:
  static constexpr size_t kMaxCompletionBytes = 1 << 20;

  // Creates or migrates the file. Jobs that a crash left queued or running become failed ("interrupted"). kCorruption
  // if it is not a database, kUnsupported if it was written by a newer program.
  static Result<std::unique_ptr<Store>> open(const std::string& path);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // Stores an example once: equal content has one row. Returns its id.
  Result<int64_t> add_example(const std::string& content_json, const std::string& job_id);
  Result<int64_t> example_count();

  Status add_job(const Job& job);
  Status set_job(const std::string& id, const std::string& state, const std::string& result_json);
  Result<Job> job(const std::string& id);        // kNotFound
  Result<std::vector<Job>> jobs(int64_t limit);  // newest first

  // Keeps the `keep` latest; none if that is 0, nor one of more than kMaxCompletionBytes.
  Status add_completion(const Completion& completion, int64_t keep);
  // The same beside an answer that goes out in any case: a failure is only logged.
  void keep_completion(const Completion& completion, int64_t keep);
  Status mark_corrected(const std::string& id, const std::string& job_id);
  Result<Completion> completion(const std::string& id);        // kNotFound
  Result<std::vector<Completion>> completions(int64_t limit);  // newest first

  Status add_version(const Version& version);
  Status mark_synced(int64_t up_to_version);
  Result<std::vector<Version>> versions(int64_t limit);  // newest first
  Result<int64_t> latest_version();                      // 0 if none

 private:
  struct State;
  explicit Store(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace lathe::store
