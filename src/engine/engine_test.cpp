#include "engine/engine.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "delta/safetensors.h"
#include "io/env.h"
#include "model/test_golden.h"
#include "weights/test_memory.h"

namespace lathe::engine {
namespace {

// A golden model with the greedy answer that transformers gives.
struct Golden {
  explicit Golden(const std::string& name) {
    const std::string directory = std::string(LATHE_SOURCE_DIR) + "/tests/golden/" + name;
    auto result = model::load_model(io::posix_env(), directory);
    EXPECT_TRUE(result.ok());
    loaded = std::move(*result);
    const auto file = io::posix_env().map(directory + "/reference.safetensors").value();
    const auto header = delta::parse_header(file->bytes(), file->bytes().size()).value();
    for (const auto& info : header.tensors) {
      if (info.name != "greedy.prompt" && info.name != "greedy.output") continue;
      const auto* ids = reinterpret_cast<const int64_t*>(file->bytes().data() + header.data_offset + info.begin);
      (info.name == "greedy.prompt" ? prompt : output).assign(ids, ids + info.shape[1]);
    }
    output.erase(output.begin(), output.begin() + static_cast<std::ptrdiff_t>(prompt.size()));
  }
  model::LoadedModel loaded;
  std::vector<int32_t> prompt, output;
};

struct Running {
  Running(const model::Model& model, EngineOptions options)
      : engine(model, gate, options), thread([this](std::stop_token stop) { engine.run(stop); }) {}
  weights::Gate gate;
  Engine engine;
  std::jthread thread;
};

std::vector<int32_t> ids_of(const std::vector<Token>& tokens) {
  std::vector<int32_t> ids;
  for (const Token& token : tokens) ids.push_back(token.id);
  return ids;
}

Request greedy(const Golden& golden) {
  return {.prompt = golden.prompt,
          .sampling = {.temperature = 0},
          .max_tokens = static_cast<int64_t>(golden.output.size())};
}

class Models : public ::testing::TestWithParam<const char*> {};

TEST_P(Models, GreedyAnswersAreThoseOfTransformersHoweverThePromptIsCut) {
  const Golden golden(GetParam());
  for (const int64_t chunk : {1, 3, 512}) {
    Running running(*golden.loaded.model, {.prefill_chunk = chunk});
    const auto generation = running.engine.submit(greedy(golden)).value();
    EXPECT_EQ(ids_of(generation->rest()), golden.output) << "chunk " << chunk;
    EXPECT_EQ(generation->finish_reason(), FinishReason::kLength);
  }
}

TEST_P(Models, CompanyDoesNotChangeAnAnswer) {
  const Golden golden(GetParam());
  Running running(*golden.loaded.model, {.max_running = 4, .prefill_chunk = 5});
  std::vector<std::shared_ptr<Generation>> company;
  for (int i = 1; i <= 9; ++i) {
    Request request{
        .prompt = {golden.prompt.begin(), golden.prompt.begin() + i}, .sampling = {.seed = i}, .max_tokens = 7 + i};
    company.push_back(running.engine.submit(std::move(request)).value());
    if (i % 3 == 0) company.push_back(running.engine.submit(greedy(golden)).value());
  }
  for (size_t i = 0; i < company.size(); ++i) {
    const auto ids = ids_of(company[i]->rest());
    if (i % 4 == 3) {
      EXPECT_EQ(ids, golden.output);
    } else {
      EXPECT_EQ(company[i]->finish_reason(), FinishReason::kLength);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Models, ::testing::ValuesIn(model::kGoldenFamilies));

// Memory that runs out ends the request that asked for it, at admission or in a step, and no other, and not the engine.
TEST(Engine, OutOfMemoryEndsARequestNotTheEngine) {
  const Golden golden("llama");
  weights::MemoryFault memory;
  Running running(*golden.loaded.model, {});
  int failed = 0;
  for (int64_t at = 1; at < 200; at = at < 12 ? at + 1 : at * 5 / 4) {
    memory.arm(at);
    const auto unlucky = running.engine.submit(greedy(golden)).value();
    const auto tokens = ids_of(unlucky->rest());
    const bool happened = memory.disarm();
    EXPECT_EQ(happened, unlucky->finish_reason() == FinishReason::kError) << "allocation " << at;
    if (happened) {
      ASSERT_TRUE(unlucky->error());
      EXPECT_NE(unlucky->error()->message.find("generation failed"), std::string::npos);
      EXPECT_LT(tokens.size(), golden.output.size());
      ++failed;
    }
    EXPECT_EQ(ids_of(running.engine.submit(greedy(golden)).value()->rest()), golden.output);
  }
  EXPECT_GT(failed, 12);
}

TEST(Engine, StopsAtStopTokensButNotBeforeMinTokens) {
  const Golden golden("llama");
  Running running(*golden.loaded.model, {});
  Request request = greedy(golden);
  request.stop_ids = {golden.output[4]};
  const auto first = std::find(golden.output.begin(), golden.output.end(), golden.output[4]) - golden.output.begin();
  const auto stopped = running.engine.submit(request).value();
  EXPECT_EQ(std::ssize(stopped->rest()), first + 1);
  EXPECT_EQ(stopped->finish_reason(), FinishReason::kStop);
  request.min_tokens = first + 1;
  const auto later = running.engine.submit(request).value()->rest();
  EXPECT_GT(std::ssize(later), first + 1);
}

TEST(Engine, PromptLogprobsAreThoseOfTheLogits) {
  const Golden golden("qwen3");
  const model::Model& model = *golden.loaded.model;
  model::SequenceState state = model.new_state(64);
  const model::SequenceRows run{.begin = 0, .count = std::ssize(golden.prompt), .position = 0, .state = &state};
  const at::Tensor ids = at::tensor(std::vector<int64_t>(golden.prompt.begin(), golden.prompt.end()), at::kLong);
  const at::Tensor expected = at::log_softmax(model.logits(model.forward(ids, {&run, 1})), -1, at::kFloat);
  for (const int64_t chunk : {4, 512}) {
    Running running(model, {.prefill_chunk = chunk});
    const auto generation =
        running.engine.submit({.prompt = golden.prompt, .max_tokens = 0, .prompt_logprobs = true}).value();
    EXPECT_TRUE(generation->rest().empty());
    const auto& scored = generation->prompt_logprobs();
    ASSERT_EQ(scored.size(), golden.prompt.size());
    for (size_t t = 1; t < scored.size(); ++t) {
      EXPECT_EQ(scored[t].id, golden.prompt[t]);
      EXPECT_NEAR(scored[t].logprob, expected[static_cast<int64_t>(t) - 1][golden.prompt[t]].item<float>(), 1e-4);
    }
  }
}

TEST(Engine, IdsOutsideTheVocabularyAreRefused) {
  const Golden golden("llama");
  weights::Gate gate;
  Engine engine(*golden.loaded.model, gate, {});
  const auto vocabulary = static_cast<int32_t>(golden.loaded.model->config().vocab_size);
  for (const int32_t id : {-1, vocabulary, INT32_MAX}) {
    const auto prompt = engine.submit({.prompt = {1, id}});
    ASSERT_FALSE(prompt.ok());
    EXPECT_EQ(prompt.error().message, "token " + std::to_string(id) + " is outside the vocabulary");
    // min_tokens writes to the logits of stop ids.
    const auto stop = engine.submit({.prompt = {1}, .stop_ids = {id}, .min_tokens = 3});
    ASSERT_FALSE(stop.ok());
    EXPECT_EQ(stop.error().message, prompt.error().message);
  }
  EXPECT_TRUE(engine.submit({.prompt = {vocabulary - 1}, .stop_ids = {vocabulary - 1}}).ok());
}

TEST(Engine, ACancelledRequestMakesRoom) {
  const Golden golden("llama");
  Running running(*golden.loaded.model, {.max_running = 1});
  const auto endless = running.engine.submit({.prompt = {1}, .max_tokens = 500}).value();
  EXPECT_TRUE(endless->next().has_value());
  endless->cancel();
  const auto next = running.engine.submit(greedy(golden)).value();
  EXPECT_EQ(ids_of(next->rest()), golden.output);
  EXPECT_LT(endless->rest().size(), 499U);
  EXPECT_EQ(endless->finish_reason(), FinishReason::kCancelled);
}

TEST(Engine, AFullQueueIsRefusedAndStoppingEndsWhatWaits) {
  const Golden golden("llama");
  weights::Gate gate;
  Engine engine(*golden.loaded.model, gate, {.max_waiting = 2});  // nobody runs it yet
  const auto first = engine.submit({.prompt = {1}, .max_tokens = 5}).value();
  const auto second = engine.submit({.prompt = {1}, .max_tokens = 5}).value();
  const auto third = engine.submit({.prompt = {1}, .max_tokens = 5});
  ASSERT_FALSE(third.ok());
  EXPECT_EQ(third.error().code, Code::kExhausted);
  std::stop_source stop;
  stop.request_stop();
  engine.run(stop.get_token());
  EXPECT_TRUE(first->rest().empty());
  EXPECT_EQ(second->finish_reason(), FinishReason::kCancelled);
  EXPECT_EQ(engine.submit({.prompt = {1}}).error().code, Code::kUnavailable);
}

TEST(Engine, RefusesByName) {
  const Golden golden("llama");
  weights::Gate gate;
  Engine engine(*golden.loaded.model, gate, {.max_context = 16});
  const auto message = [&](Request request) { return engine.submit(std::move(request)).error().message; };
  EXPECT_NE(message({.prompt = {}}).find("empty"), std::string::npos);
  EXPECT_NE(message({.prompt = {1}, .max_tokens = 16}).find("maximum context is 16"), std::string::npos);
  EXPECT_NE(message({.prompt = {9999}, .max_tokens = 1}).find("9999"), std::string::npos);
  EXPECT_NE(message({.prompt = {1}, .sampling = {.top_p = 0}}).find("top_p"), std::string::npos);
}

// Commits are counted while one answer is in the making: an engine that kept the gate until an answer's end would let
// in one at most.
TEST(Engine, ACommitGetsInBetweenSteps) {
  constexpr int64_t kTokens = 400, kCommits = 10;
  const Golden golden("llama");
  Running running(*golden.loaded.model, {});
  int64_t most = 0;
  // A busy machine may let an answer through before this thread has its turns.
  for (int answer = 0; answer < 20 && most < kCommits; ++answer) {
    const auto generation = running.engine.submit({.prompt = {1}, .max_tokens = kTokens}).value();
    ASSERT_TRUE(generation->next().has_value());
    int64_t commits = 0;
    while (true) {
      const weights::Gate::Exclusive alone(running.gate);
      if (running.engine.stats().running == 0) break;
      ++commits;
    }
    EXPECT_EQ(generation->rest().size(), static_cast<size_t>(kTokens - 1));
    most = std::max(most, commits);
  }
  EXPECT_GE(most, kCommits);
}

}  // namespace
}  // namespace lathe::engine
