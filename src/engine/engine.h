// Engine: generates tokens for several requests at once (continuous batching) over one model.
//
// One thread calls run(): it admits waiting requests, prefills them in chunks and decodes all of them together, one
// token each per step, holding the Gate shared for one step at a time, so that a commit waits for at most one step.
//
// Threads: submit() from any thread; run() on exactly one. A Generation is shared by the engine and one consumer.
// Memory: bounded: at most `max_running` sequences, `max_waiting` queued, and tokens of a Generation nobody reads are
// bounded by its max_tokens.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <utility>
#include <vector>

#include "base/result.h"
#include "data/sampling.h"
#include "model/model.h"
#include "weights/gate.h"

namespace lathe::engine {

using data::Sampling;

struct Request {
  std::vector<int32_t> prompt;  // not empty
  Sampling sampling;
  int64_t max_tokens = 16;        // 0 is allowed with prompt_logprobs
  std::vector<int32_t> stop_ids;  // ends the answer; the stop token itself is delivered
  int64_t min_tokens = 0;         // stop ids are ignored before
  int top_logprobs = 0;           // alternatives per token, 0..20
  bool logprobs = false;
  bool prompt_logprobs = false;
};

struct Candidate {
  int32_t id = 0;
  float logprob = 0;
};

struct Token {
  int32_t id = 0;
  float logprob = 0;           // of the unmodified distribution; 0 unless asked for
  std::vector<Candidate> top;  // top_logprobs entries, best first
};

enum class FinishReason { kStop, kLength, kCancelled, kError };

// One answer in the making.
class Generation {
 public:
  // The next token, or nothing when the answer is complete (then finish_reason() is set). Blocks.
  std::optional<Token> next();
  // Waits until all is done; gives all tokens not yet taken.
  std::vector<Token> rest();
  // The consumer no longer cares; the engine frees its place at the next step.
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }

  // Valid once next() has returned nothing.
  FinishReason finish_reason() const;
  const std::optional<Error>& error() const { return error_; }
  // logprob of each prompt token given those before it; the first entry is 0. Filled before the first token arrives.
  const std::vector<Token>& prompt_logprobs() const { return prompt_logprobs_; }

 private:
  friend class Engine;
  mutable std::mutex mutex_;  // guards ready_, finish_, error_, prompt_logprobs_
  std::condition_variable arrived_;
  std::deque<Token> ready_;
  std::optional<FinishReason> finish_;
  std::optional<Error> error_;
  std::vector<Token> prompt_logprobs_;
  std::atomic<bool> cancelled_{false};
};

struct EngineOptions {
  int64_t max_running = 8;
  int64_t max_waiting = 64;
  int64_t prefill_chunk = 512;  // rows per step given to prompts
  int64_t max_context = 0;      // tokens of prompt and answer; 0: the model's limit
};

struct EngineStats {
  int64_t running = 0, waiting = 0;
  int64_t prompt_tokens = 0, generated_tokens = 0;  // since the start
};

class Engine {
 public:
  Engine(const model::Model& model, weights::Gate& gate, EngineOptions options);
  ~Engine();

  // kExhausted when the queue is full; kInvalidArgument when prompt + max_tokens do not fit or an id of the prompt or a
  // stop id is out of range.
  Result<std::shared_ptr<Generation>> submit(Request request);

  // Serves until `stop` is requested, then ends every generation with kCancelled.
  void run(std::stop_token stop);

  EngineStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lathe::engine
