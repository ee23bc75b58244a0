// Service: what the HTTP routes of inference do; those of teaching are in learning_routes.h. Joins api (JSON), text and
// engine; owns none of them.
//
// Threads: handlers run on HTTP threads, concurrently; everything they touch may be used from any thread.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/requests.h"
#include "api/responses.h"
#include "engine/engine.h"
#include "engine/text_stream.h"
#include "http/server.h"
#include "store/store.h"
#include "text/text.h"

namespace lathe::daemon {

class Service {
 public:
  struct Options {
    std::string model_name;
    int64_t max_context = 0;  // tokens of prompt and answer
    int64_t keep_completions = 0;
    std::function<int64_t()> version;     // of the weights
    std::function<api::Health()> health;  // all but the engine's part
  };

  // All references outlive the service.
  Service(const text::Text& text, const model::ModelConfig& model, engine::Engine& engine, store::Store& store,
          Options options);

  void add_routes(http::Server& server);

 private:
  http::Response chat(const http::Request& request);
  http::Response completion(const http::Request& request);
  std::string health() const;

  // The engine's request for a tokenised prompt, as the answer's choice number `choice` to it. Without a default of
  // tokens: all that there is room for.
  Result<engine::Request> engine_request(std::vector<int32_t> prompt, const api::GenerationRequest& request,
                                         int64_t choice, std::optional<int64_t> default_max_tokens) const;

  // One choice of an answer in the making.
  struct Part {
    std::vector<int32_t> prompt;
    std::shared_ptr<engine::TextStream> stream;
    std::vector<engine::Token> tokens = {};
    api::Choice choice = {};
    bool complete = false;
  };
  Result<Part> start(int64_t index, engine::Request request, const std::vector<std::string>& stop) const;
  // Waits for the next piece of the part's text.
  Status advance(Part& part) const;
  // `echo`: the prompt, with its log-probabilities if those are asked for, becomes the beginning of `choice`.
  Status prepend_prompt(const Part& part, api::Choice& choice) const;
  // The choices of complete parts.
  Result<std::vector<api::Choice>> finished(std::vector<Part>& parts, bool logprobs, bool echo) const;
  static api::Usage usage_of(const std::vector<Part>& parts, int64_t prompt_tokens);
  // An answer sent whole: `body` makes it of the complete parts. A client that leaves cancels it.
  Result<http::Response> whole(std::vector<Part> parts,
                               std::function<Result<std::string>(std::vector<Part>& parts)> body) const;
  std::vector<api::LogprobEntry> logprob_entries(const std::vector<engine::Token>& tokens) const;

  // What a stream is made of.
  struct StreamForm {
    bool logprobs = false, include_usage = false, continuous_usage = false;
    int64_t prompt_tokens = 0;
    std::function<std::string(const api::Choice& delta, bool first, const std::optional<api::Usage>& usage)> chunk = {};
    std::function<std::string(const api::Usage&)> usage_chunk = {};
    bool opens_with_role = false;                              // a first chunk without text, for each choice
    bool echo = false;                                         // the prompt before each choice
    std::function<void(const api::Choice& choice)> keep = {};  // of the first complete choice; may be empty
  };
  static StreamForm stream_form(const api::GenerationRequest& request, int64_t prompt_tokens);
  http::Response stream(std::vector<Part> parts, StreamForm form) const;
  Status send_stream(const http::SendEvent& send, const StreamForm& form, std::vector<Part>& parts) const;
  // False when the client is gone.
  bool send_delta(const http::SendEvent& send, const StreamForm& form, const std::vector<Part>& parts,
                  const api::Choice& delta, bool first) const;
  // Keeps a chat's answer for later correction. It is the client's all the same if that fails.
  void keep(const api::ResponseHead& head, const std::string& conversation, const std::string& answer) const;
  api::ResponseHead head(const char* prefix) const;
  Status check_model(const std::string& name) const;

  const text::Text& text_;
  const model::ModelConfig& model_;
  engine::Engine& engine_;
  store::Store& store_;
  const Options options_;
  const std::chrono::system_clock::time_point started_ = std::chrono::system_clock::now();
};

}  // namespace lathe::daemon
