// Service: what the HTTP routes of inference do; those of teaching are in learning_routes.h. Joins api (JSON), text and
// engine; owns none of them.
//
// Threads: handlers run on HTTP threads, concurrently; everything they touch may be used from any thread.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "api/requests.h"
#include "api/responses.h"
#include "config/settings.h"
#include "daemon/learner.h"
#include "engine/engine.h"
#include "engine/text_stream.h"
#include "http/server.h"
#include "text/text.h"

namespace lathe::daemon {

class Service {
 public:
  // All references outlive the service.
  Service(const text::Text& text, const model::ModelConfig& model, engine::Engine& engine, Learner& learner,
          store::Store& store, const config::Settings& settings, std::string model_name);

  void add_routes(http::Server& server);

 private:
  http::Response chat(const http::Request& request);
  http::Response completion(const http::Request& request);
  std::string health() const;

  // The engine's request for a tokenised prompt.
  engine::Request engine_request(std::vector<int32_t> prompt, const api::GenerationRequest& request,
                                 int64_t default_max_tokens) const;

  // One choice of an answer in the making.
  struct Part {
    std::vector<int32_t> prompt;
    std::shared_ptr<engine::TextStream> stream;
    std::vector<engine::Token> tokens = {};
    api::Choice choice = {};
    bool complete = false;
  };
  Result<Part> start(const std::vector<int32_t>& prompt, engine::Request request,
                     const std::vector<std::string>& stop) const;
  // Waits for the next piece of the part's text.
  Status advance(Part& part) const;
  // `echo`: the prompt, with its log-probabilities if those are asked for, becomes part of the choice.
  Status prepend_prompt(Part& part) const;
  // An answer sent whole: `body` makes it of the complete parts. A client that leaves cancels it.
  Result<http::Response> whole(std::vector<Part> parts,
                               std::function<Result<std::string>(std::vector<Part>& parts)> body) const;
  std::vector<api::LogprobEntry> logprob_entries(const std::vector<engine::Token>& tokens) const;
  // `conversation`: of a chat, else empty.
  http::Response stream(std::shared_ptr<engine::TextStream> stream, const api::ResponseHead& head,
                        const api::GenerationRequest& request, int64_t prompt_tokens,
                        const std::string& conversation) const;
  // Keeps a chat's answer for later correction. It is the client's all the same if that fails.
  void keep(const api::ResponseHead& head, const std::string& conversation, const std::string& answer) const;
  api::ResponseHead head(const char* prefix) const;
  Status check_model(const std::string& name) const;

  const text::Text& text_;
  const model::ModelConfig& model_;
  engine::Engine& engine_;
  Learner& learner_;
  store::Store& store_;
  const config::Settings& settings_;
  const std::string model_name_;
  const std::chrono::system_clock::time_point started_ = std::chrono::system_clock::now();
};

}  // namespace lathe::daemon
