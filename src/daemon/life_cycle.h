// LifeCycle: what `serve` and `attach` share: from a recovered directory to a running HTTP server, and from a signal to
// the last sync.
//
// Threads: the main thread makes it and calls run(); docs/threads.md.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "config/settings.h"
#include "daemon/learning_routes.h"
#include "daemon/signals.h"
#include "http/server.h"
#include "model/model.h"
#include "store/store.h"
#include "teach/teacher.h"
#include "text/text.h"

namespace lathe::daemon {

class LifeCycle {
 public:
  struct Parts {
    io::Env& env;
    std::string directory;
    const text::Text& text;
    model::LoadedModel& loaded;
    teach::Holder& holder;
    store::Store& store;
    int64_t on_disk = 0;
    bool adopt = false;  // the live weights are not the directory's
    LearningRoutes::Grade grade = {};
  };

  // All references outlive the object, `settings` too. Names what a process that was killed took with it.
  static Result<std::unique_ptr<LifeCycle>> create(const Parts& parts, const config::Settings& settings);

  teach::Teacher& teacher() { return teacher_; }
  LearningRoutes& learning() { return learning_; }
  http::Server& server() { return server_; }
  // What /healthz says of teaching; the rest is the caller's.
  api::Health health() const;

  // Serves until a signal. `others`: further threads, each with a stop token; they are stopped after the teaching
  // thread was told to. `ending`: called when the end begins. Returns what the last sync did.
  using Thread = std::function<void(std::stop_token)>;
  Status run(const Signals& signals, const std::function<void(int port)>& ready, const std::vector<Thread>& others,
             const std::function<void()>& ending = {});

 private:
  LifeCycle(const Parts& parts, const config::Settings& settings);

  io::Env& env_;
  const std::string directory_;
  const config::Settings& settings_;
  const std::string model_name_;
  teach::Events events_;
  const std::unique_ptr<teach::Events::Subscription> logging_;
  teach::Teacher teacher_;
  LearningRoutes learning_;
  std::unique_ptr<teach::Events::Subscription> relearning_;
  http::Server server_;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

// What a server would refuse about its address and keys when it starts, before a model is loaded for it.
Status check_access(const config::Settings& settings);

// Finishes what a crash interrupted; the version that the directory then holds.
Result<int64_t> recovered_version(io::Env& env, const std::string& directory);

// `served_name`, or, if that is empty, the last component of the directory's path.
std::string model_name(const std::string& served_name, const std::string& directory);

// Tokens of prompt and answer, or of an example, at most. `max_context`: 0 is the model's limit.
int64_t context_limit(int64_t max_context, const model::ModelConfig& model);

}  // namespace lathe::daemon
