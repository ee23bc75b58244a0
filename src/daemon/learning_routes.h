// LearningRoutes: what the HTTP routes of teaching do, whoever serves the answers: this process (service.h) or vLLM
// (attach.h). Joins api (JSON), text and teach; owns none of them.
//
// Threads: handlers run on HTTP threads, concurrently; everything they touch may be used from any thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "api/requests.h"
#include "api/responses.h"
#include "api/training_file.h"
#include "http/server.h"
#include "io/env.h"
#include "teach/teacher.h"
#include "text/text.h"

namespace lathe::daemon {

class LearningRoutes {
 public:
  // How a conversation becomes graded tokens.
  using Grade = std::function<Result<text::GradedTokens>(const api::LearnExample&)>;

  struct Options {
    std::string directory;
    // Of a lesson that does not say otherwise.
    double learning_rate = 0;
    int64_t steps = 1;
    double until_loss = 0;
    int64_t vocab_size = 0;
    int64_t max_context = 0;  // tokens of an example
    Grade grade = {};         // empty: by `text`
  };

  // All references outlive the object.
  LearningRoutes(const text::Text& text, teach::Teacher& teacher, store::Store& store, io::Env& env, Options options)
      : text_(text), teacher_(teacher), store_(store), env_(env), options_(std::move(options)) {}

  void add_routes(http::Server& server);
  // /tokenize and /detokenize by `text`.
  void add_text_routes(http::Server& server);

  // Queues lessons that were learned and lost once more, from their requests; what cannot be, is logged with the
  // reason.
  void relearn(const std::vector<std::string>& jobs);
  // Lessons that were lost, and that no later job has learned or is about to.
  std::vector<std::string> still_lost() const { return lost(/*but_failed_again=*/false); }
  // Of these, those that nothing but the end of a process kept from being learned again.
  std::vector<std::string> to_relearn() const { return lost(/*but_failed_again=*/true); }

 private:
  std::vector<std::string> lost(bool but_failed_again) const;
  http::Response learn(const http::Request& request);
  http::Response ended(const std::string& id, const teach::Outcome& outcome) const;
  Result<teach::Lesson> lesson_of(const api::LearnRequest& request, const std::string& id) const;
  Result<std::string> relearn_one(const std::string& id);
  Result<std::string> cancel(const std::string& id);
  Result<std::string> jobs(const http::Request& request) const;
  Result<std::string> job(const std::string& id) const;
  Result<std::string> versions(const http::Request& request) const;
  Result<std::string> completions(const http::Request& request) const;
  Result<std::string> completion(const std::string& id) const;
  Result<std::string> tokenize(const std::string& body) const;
  Result<std::string> detokenize(const std::string& body) const;
  Result<api::LearnRequest> parse(const std::string& body) const;

  const text::Text& text_;
  teach::Teacher& teacher_;
  store::Store& store_;
  io::Env& env_;
  const Options options_;
};

}  // namespace lathe::daemon
