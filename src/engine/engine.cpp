#include "engine/engine.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <random>

#include "engine/sampler.h"
#include "gpu/device.h"

namespace lathe::engine {

std::optional<Token> Generation::next() {
  std::unique_lock hold(mutex_);
  arrived_.wait(hold, [&] { return !ready_.empty() || finish_; });
  if (ready_.empty()) return std::nullopt;
  Token token = std::move(ready_.front());
  ready_.pop_front();
  return token;
}

std::vector<Token> Generation::rest() {
  std::vector<Token> tokens;
  while (auto token = next()) tokens.push_back(std::move(*token));
  return tokens;
}

FinishReason Generation::finish_reason() const {
  const std::lock_guard hold(mutex_);
  return finish_.value_or(FinishReason::kCancelled);
}

// A request that has a place in the batch. Owned by the engine's thread.
struct Sequence {
  Request request;
  std::shared_ptr<Generation> generation;
  model::SequenceState state;
  Sampler sampler;
  std::vector<int32_t> pending;  // tokens whose keys and values are not in `state` yet
  int64_t generated = 0;
};

// Rows of one sequence in the step at hand.
struct Share {
  Sequence* sequence;
  model::SequenceRows run;
  bool samples;  // the last row's logits choose a token
};

struct Waiting {
  Request request;
  std::shared_ptr<Generation> generation;
};

struct Engine::State {
  State(const model::Model& m, weights::Gate& g, EngineOptions o) : model(m), gate(g), options(o) {}

  const model::Model& model;
  weights::Gate& gate;
  EngineOptions options;

  mutable std::mutex mutex;  // guards waiting, stats, stopped
  std::condition_variable_any work;
  std::deque<Waiting> waiting;
  EngineStats stats;
  bool stopped = false;

  std::vector<std::unique_ptr<Sequence>> running;  // engine thread only
  std::mt19937_64 seeds{std::random_device{}()};   // engine thread only; for requests without a seed

  void admit();
  void admit(Waiting next);
  void step();
  void fail_all(const Error& error);
  std::vector<Share> plan(std::vector<int64_t>& ids);
  void deliver(const std::vector<Share>& shares, const at::Tensor& x);
  void score_prompt(const Share& share, const at::Tensor& x);
  void choose(Sequence& sequence, std::span<float> logits);
  void finish(Generation& generation, FinishReason reason, std::optional<Error> error = {});
  void drop_finished();
};

Engine::Engine(const model::Model& model, weights::Gate& gate, EngineOptions options)
    : state_(std::make_unique<State>(model, gate, options)) {
  if (state_->options.max_context <= 0) state_->options.max_context = model.config().max_positions;
}

Engine::~Engine() = default;

Result<std::shared_ptr<Generation>> Engine::submit(Request request) {
  LATHE_TRY(request.sampling.validate());
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t limit = std::min(state_->options.max_context, state_->model.config().max_positions);
  if (prompt == 0) return invalid_argument("the prompt is empty");
  if (request.max_tokens < 0) return invalid_argument("max_tokens must not be negative");
  if (prompt + request.max_tokens > limit) {
    return invalid_argument("this model's maximum context is " + std::to_string(limit) + " tokens; the request needs " +
                            std::to_string(prompt + request.max_tokens) + " (" + std::to_string(prompt) +
                            " in the prompt, " + std::to_string(request.max_tokens) + " for the answer)");
  }
  for (const auto* ids : {&request.prompt, &request.stop_ids}) {
    for (const int32_t id : *ids) {
      if (id < 0 || id >= state_->model.config().vocab_size)
        return invalid_argument("token " + std::to_string(id) + " is outside the vocabulary");
    }
  }
  for (const auto& [id, bias] : request.sampling.logit_bias) {
    if (id < 0 || id >= state_->model.config().vocab_size)
      return invalid_argument("'logit_bias' names token " + std::to_string(id) + ", which is outside the vocabulary");
  }
  auto generation = std::make_shared<Generation>();
  {
    const std::lock_guard hold(state_->mutex);
    if (state_->stopped) return Error{Code::kUnavailable, "the server is shutting down"};
    if (static_cast<int64_t>(state_->waiting.size()) >= state_->options.max_waiting) {
      return Error{Code::kExhausted, "the server is busy: " + std::to_string(state_->waiting.size()) +
                                         " requests are waiting; try again later"};
    }
    state_->waiting.push_back({std::move(request), generation});
  }
  state_->work.notify_all();
  return generation;
}

EngineStats Engine::stats() const {
  const std::lock_guard hold(state_->mutex);
  EngineStats stats = state_->stats;
  stats.waiting = static_cast<int64_t>(state_->waiting.size());
  return stats;
}

void Engine::run(std::stop_token stop) {
  const at::NoGradGuard no_grad;
  const gpu::OwnStream own_stream(state_->model.options().device());
  while (!stop.stop_requested()) {
    {
      std::unique_lock hold(state_->mutex);
      if (state_->running.empty()) state_->work.wait(hold, stop, [&] { return !state_->waiting.empty(); });
    }
    if (stop.stop_requested()) break;
    try {
      state_->admit();
      state_->step();
    } catch (const std::exception& e) {
      // What admit() and step() do not give to one request or one step.
      state_->fail_all(gpu::error_of("generation", e));
    }
  }
  for (auto& sequence : state_->running) state_->finish(*sequence->generation, FinishReason::kCancelled);
  state_->running.clear();
  std::deque<Waiting> left;
  {
    const std::lock_guard hold(state_->mutex);
    state_->stopped = true;
    left.swap(state_->waiting);
  }
  for (Waiting& w : left) {
    const std::lock_guard hold(w.generation->mutex_);
    w.generation->finish_ = FinishReason::kCancelled;
    w.generation->arrived_.notify_all();
  }
}

void Engine::State::admit() {
  while (static_cast<int64_t>(running.size()) < options.max_running) {
    Waiting next;
    {
      const std::lock_guard hold(mutex);
      if (waiting.empty()) break;
      next = std::move(waiting.front());
      waiting.pop_front();
    }
    // The border, as in step(): the request that there is no room for fails, the engine continues.
    const std::shared_ptr<Generation> generation = next.generation;
    try {
      admit(std::move(next));
    } catch (const std::exception& e) {
      finish(*generation, FinishReason::kError, gpu::error_of("generation", e));
    }
  }
  const std::lock_guard hold(mutex);
  stats.running = static_cast<int64_t>(running.size());
}

void Engine::State::admit(Waiting next) {
  const auto prompt = static_cast<int64_t>(next.request.prompt.size());
  const int64_t expected = prompt + std::min<int64_t>(next.request.max_tokens, 256);
  Sampler sampler(next.request.sampling, next.request.prompt, seeds());
  std::vector<int32_t> pending = next.request.prompt;
  running.push_back(std::make_unique<Sequence>(Sequence{.request = std::move(next.request),
                                                        .generation = std::move(next.generation),
                                                        .state = model.new_state(expected),
                                                        .sampler = std::move(sampler),
                                                        .pending = std::move(pending)}));
  const std::lock_guard hold(mutex);
  stats.prompt_tokens += prompt;
}

// Every decoding sequence gets its one row; what is left of the chunk goes to prompts, oldest first.
std::vector<Share> Engine::State::plan(std::vector<int64_t>& ids) {
  std::vector<Share> shares;
  int64_t prompt_rows = options.prefill_chunk;
  for (const auto& sequence : running) {
    const auto wanted = static_cast<int64_t>(sequence->pending.size());
    const int64_t count = sequence->generated > 0 ? wanted : std::min(wanted, prompt_rows);
    if (count == 0) continue;
    if (sequence->generated == 0) prompt_rows -= count;
    const auto begin = static_cast<int64_t>(ids.size());
    ids.insert(ids.end(), sequence->pending.begin(), sequence->pending.begin() + count);
    shares.push_back({sequence.get(),
                      {.begin = begin, .count = count, .position = sequence->state.length(), .state = &sequence->state},
                      count == wanted});
  }
  return shares;
}

void Engine::State::step() {
  for (const auto& sequence : running) {
    if (sequence->generation->cancelled_.load(std::memory_order_relaxed))
      finish(*sequence->generation, FinishReason::kCancelled);
  }
  drop_finished();
  std::vector<int64_t> ids;
  const std::vector<Share> shares = plan(ids);
  if (shares.empty()) return;
  try {
    const weights::Gate::Shared reading(gate);
    const gpu::Fence finished(model.options().device());
    std::vector<model::SequenceRows> runs;
    for (const Share& share : shares) runs.push_back(share.run);
    const at::Tensor x = model.forward(at::tensor(ids, at::kLong).to(model.options().device()), runs);
    deliver(shares, x);
  } catch (const std::exception& e) {
    // The border between torch's exceptions and our errors: the requests of this step fail, the engine continues.
    for (const Share& share : shares)
      finish(*share.sequence->generation, FinishReason::kError, gpu::error_of("generation", e));
  }
  drop_finished();
}

void Engine::State::deliver(const std::vector<Share>& shares, const at::Tensor& x) {
  std::vector<int64_t> last_rows;
  for (const Share& share : shares) {
    if (share.sequence->request.prompt_logprobs && share.sequence->generated == 0) score_prompt(share, x);
    Sequence& sequence = *share.sequence;
    sequence.pending.erase(sequence.pending.begin(), sequence.pending.begin() + share.run.count);
    if (share.samples) last_rows.push_back(share.run.begin + share.run.count - 1);
  }
  if (last_rows.empty()) return;
  at::Tensor logits = model.logits(x.index_select(0, at::tensor(last_rows, at::kLong).to(x.device())))
                          .to(at::kCPU, at::kFloat)
                          .contiguous();
  int64_t row = 0;
  for (const Share& share : shares) {
    if (!share.samples) continue;
    choose(*share.sequence, {logits[row].data_ptr<float>(), static_cast<size_t>(logits.size(1))});
    ++row;
  }
}

// Row p of the prompt gives the probability of token p + 1. A few rows at a time: logits are vocabulary-wide.
void Engine::State::score_prompt(const Share& share, const at::Tensor& x) {
  constexpr int64_t kRows = 64;
  const std::vector<int32_t>& prompt = share.sequence->request.prompt;
  std::vector<Token> scored;
  if (share.run.position == 0) scored.push_back({.id = prompt[0]});
  for (int64_t begin = 0; begin < share.run.count; begin += kRows) {
    const int64_t count = std::min(kRows, share.run.count - begin);
    const at::Tensor logits =
        model.logits(x.narrow(0, share.run.begin + begin, count)).to(at::kCPU, at::kFloat).contiguous();
    for (int64_t r = 0; r < count; ++r) {
      const auto target = static_cast<size_t>(share.run.position + begin + r + 1);
      if (target >= prompt.size()) break;
      scored.push_back(log_probability({logits[r].data_ptr<float>(), static_cast<size_t>(logits.size(1))},
                                       prompt[target], share.sequence->request.top_logprobs));
    }
  }
  Generation& generation = *share.sequence->generation;
  const std::lock_guard hold(generation.mutex_);
  std::move(scored.begin(), scored.end(), std::back_inserter(generation.prompt_logprobs_));
}

void Engine::State::choose(Sequence& sequence, std::span<float> logits) {
  const Request& request = sequence.request;
  if (request.max_tokens == 0) return finish(*sequence.generation, FinishReason::kLength);
  if (sequence.generated < request.min_tokens) {
    for (const int32_t id : request.stop_ids) logits[id] = -1e30F;
  }
  std::vector<float> unmodified;
  if (request.logprobs) unmodified.assign(logits.begin(), logits.end());
  const Result<int32_t> id = sequence.sampler.next(logits);
  if (!id.ok()) return finish(*sequence.generation, FinishReason::kError, id.error());
  Token token = request.logprobs ? log_probability(unmodified, *id, request.top_logprobs) : Token{.id = *id};
  Generation& generation = *sequence.generation;
  {
    const std::lock_guard hold(generation.mutex_);
    generation.ready_.push_back(std::move(token));
  }
  generation.arrived_.notify_all();
  ++sequence.generated;
  sequence.pending = {*id};
  const bool stop = std::find(request.stop_ids.begin(), request.stop_ids.end(), *id) != request.stop_ids.end();
  if (stop) return finish(*sequence.generation, FinishReason::kStop);
  if (sequence.generated >= request.max_tokens) finish(*sequence.generation, FinishReason::kLength);
}

void Engine::State::finish(Generation& generation, FinishReason reason, std::optional<Error> error) {
  {
    const std::lock_guard hold(generation.mutex_);
    if (generation.finish_) return;
    generation.finish_ = reason;
    generation.error_ = std::move(error);
  }
  generation.arrived_.notify_all();
}

void Engine::State::fail_all(const Error& error) {
  for (const auto& sequence : running) finish(*sequence->generation, FinishReason::kError, error);
  running.clear();
  const std::lock_guard hold(mutex);
  stats.running = 0;
}

void Engine::State::drop_finished() {
  int64_t generated = 0;
  std::erase_if(running, [&](const std::unique_ptr<Sequence>& sequence) {
    const std::lock_guard hold(sequence->generation->mutex_);
    if (!sequence->generation->finish_) return false;
    generated += sequence->generated;
    return true;
  });
  const std::lock_guard hold(mutex);
  stats.running = static_cast<int64_t>(running.size());
  stats.generated_tokens += generated;
}

}  // namespace lathe::engine
