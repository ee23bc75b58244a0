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

// What a lesson did.
struct Learned {
  int64_t previous_version = 0;
  int64_t version = 0;
  int64_t steps = 0;
  int64_t graded_tokens = 0;
  int64_t tokens = 0;
  double loss_before = 0;
  double loss_after = 0;
  double seconds = 0;
  double pause_ms = 0;          // the longest time that one commit held the weights
  double changed_fraction = 0;  // of the weights, mean per step
  double realised = 0;          // realised / intended update
};

// What a lesson's last step did to one tensor.
struct TensorChange {
  std::string name;
  double gradient_norm = 0;
  double update_norm = 0;  // of the intended change, over the learning rate
  double limiter = 1;      // what the norm-growth limiter divided the update by
  double changed_fraction = 0;
  double realised = 1;  // realised / intended update
};

struct Job {
  std::string id;
  std::string state;         // teach::state_name()
  std::string request_json;  // as received
  Learned learned = {};
  std::string error_code = {}, error = {};       // empty: none
  std::string relearns = {}, relearned_by = {};  // the lost job that this one repeats; the one that repeats this
  double created_at = 0;                         // seconds since 1970
  double finished_at = 0;                        // 0 until finished
  // Versions that this job made and that are not on disk: still only in memory, or gone.
  int64_t pending_versions = 0, lost_versions = 0;
};

struct Version {
  int64_t version = 0;
  std::string kind = "learn";  // learn, rollback, redo, adopt
  std::string job_id = {};     // of a lesson's step
  double created_at = 0;
  double loss = 0;  // before the step that made it
  double learning_rate = 0;
  double changed_fraction = 0;
  int64_t durable_as = 0;  // the version on disk that holds it; 0: none
  bool lost = false;       // it was never durable, and the process that had it in memory is gone
};

// What the end of a process, or of what held the weights, took away.
struct Lost {
  std::vector<int64_t> versions;
  std::vector<std::string> jobs;  // that had finished; oldest first
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

  // Creates or migrates the file. Jobs that a crash left queued or running become "interrupted". kCorruption if it is
  // not a database, kUnsupported if it was written by a newer program.
  static Result<std::unique_ptr<Store>> open(const std::string& path);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // Stores an example once: equal content has one row. Returns its id.
  Result<int64_t> add_example(const std::string& content_json, const std::string& job_id);
  Result<int64_t> example_count();

  Status add_job(const Job& job);  // id, state, request_json, relearns
  Status set_state(const std::string& id, const std::string& state);
  // State, error and what was learned, of a job that ended.
  Status finish_job(const Job& job, const std::vector<TensorChange>& tensors);
  Result<Job> job(const std::string& id);  // kNotFound
  Result<std::vector<TensorChange>> tensors(const std::string& job_id);
  // Newest first; those older than `after`, if that is not empty. kNotFound if there is no such job.
  Result<std::vector<Job>> jobs(int64_t limit, const std::string& after = "");
  Result<std::vector<Job>> jobs_in_state(const std::string& state);  // oldest first

  // Keeps the `keep` latest; none if that is 0, nor one of more than kMaxCompletionBytes.
  Status add_completion(const Completion& completion, int64_t keep);
  // The same for an answer that is sent in any case: a failure is only logged.
  void keep_completion(const Completion& completion, int64_t keep);
  Status mark_corrected(const std::string& id, const std::string& job_id);
  Result<Completion> completion(const std::string& id);        // kNotFound
  Result<std::vector<Completion>> completions(int64_t limit);  // newest first

  // Before the weights change, so that no number is ever given twice; a number that was not used is removed again.
  Status add_version(const Version& version);
  Status remove_version(int64_t version);
  // Not durable by itself: a figure for people.
  Status set_changed_fraction(int64_t version, double fraction);
  // `on_disk`: all versions the directory holds, ascending. Each version that is not lost belongs to the first of them
  // that is not before it.
  Status mark_durable(const std::vector<int64_t>& on_disk);
  // As mark_durable(); versions beyond are lost, and finished jobs that made them become "lost".
  Result<Lost> mark_lost(const std::vector<int64_t>& on_disk);
  Result<std::vector<Version>> versions(int64_t limit);                                 // newest first
  Result<std::vector<Version>> versions_in(int64_t on_disk_after, int64_t on_disk_to);  // by durable_as; ascending
  Result<std::vector<Version>> pending_versions();            // neither durable nor lost; ascending
  Result<std::vector<Version>> lost_versions(int64_t limit);  // newest first
  Result<int64_t> latest_version();                           // 0 if none

 private:
  struct State;
  explicit Store(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace lathe::store
