// LearningRoutes: what the HTTP routes of teaching do, whoever serves the answers: this process (service.h) or vLLM
// (attach.h). Joins api (JSON), text and learner; owns none of them.
//
// Threads: handlers run on HTTP threads, concurrently; everything they touch may be used from any thread.
#pragma once

#include <functional>
#include <string>

#include "api/requests.h"
#include "config/settings.h"
#include "daemon/learner.h"
#include "http/server.h"
#include "text/text.h"

namespace lathe::daemon {

class LearningRoutes {
 public:
  // How a conversation becomes graded tokens.
  using Grade = std::function<Result<text::GradedTokens>(const api::LearnExample&)>;

  // All references outlive the object. `grade` empty: by `text`.
  LearningRoutes(const text::Text& text, const model::ModelConfig& model, Learner& learner, store::Store& store,
                 const config::Settings& settings, Grade grade = {})
      : text_(text), model_(model), learner_(learner), store_(store), settings_(settings), grade_(std::move(grade)) {}

  void add_routes(http::Server& server);
  // /tokenize and /detokenize by `text`.
  void add_text_routes(http::Server& server);

 private:
  http::Response learn(const http::Request& request);
  Result<std::string> completions(const http::Request& request) const;
  Result<std::string> completion(const std::string& id) const;
  Result<std::string> job(const std::string& id) const;
  Result<std::string> tokenize(const std::string& body) const;
  Result<std::string> detokenize(const std::string& body) const;
  Result<data::Example> tokenised(const api::LearnExample& example) const;

  const text::Text& text_;
  const model::ModelConfig& model_;
  Learner& learner_;
  store::Store& store_;
  const config::Settings& settings_;
  const Grade grade_;
};

}  // namespace lathe::daemon
