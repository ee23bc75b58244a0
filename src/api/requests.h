// Requests of every route, from JSON to native types. All checks that need no model are made here.
//
// Errors: kInvalidArgument that names the field, as OpenAI's `param`. Nothing that could change an answer or a lesson is
// ignored: unknown fields are refused, but for those that say nothing about the answer, such as `user`. A field that is
// null is absent.
// Threads: pure functions. Protocol page: docs/protocols/http.md
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "data/example.h"
#include "data/sampling.h"
#include "text/chat_template.h"

namespace lathe::api {

// What chat and plain completions share.
struct GenerationRequest {
  std::string model;
  data::Sampling sampling;
  std::optional<int64_t> max_tokens;
  int64_t min_tokens = 0;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int64_t n = 1;
  bool stream = false;
  bool include_usage = false;     // a last chunk with the sums
  bool continuous_usage = false;  // each chunk with those so far
  bool logprobs = false;
  int top_logprobs = 0;
};

struct ChatRequest {
  GenerationRequest generation;
  std::vector<text::Message> messages;
  text::RenderOptions render;
  std::string conversation_json;  // what a correction of the answer needs, for the store
};

using Prompt = std::variant<std::string, std::vector<int32_t>>;

struct CompletionRequest {
  GenerationRequest generation;
  std::vector<Prompt> prompts;
  bool echo = false;
};

struct TokenizeRequest {
  std::variant<std::string, ChatRequest> input;  // a text, or messages
};

struct DetokenizeRequest {
  std::vector<int32_t> tokens;
};

struct LearnExample {
  std::vector<text::Message> messages;
  std::vector<float> turn_weights;  // one per assistant message
  text::RenderOptions render;
  std::string json;        // canonical text, for the store
  std::string completion;  // whose answer this corrects; empty: none's
};

struct LearnRequest {
  std::vector<LearnExample> examples;
  std::optional<int64_t> steps;
  std::optional<double> learning_rate;
  std::optional<double> until_loss;  // no further step once the loss is below
  data::ContextMode context = data::ContextMode::kFrozen;
  bool report_tensors = false;  // "report": "tensors"
  bool wait = true;
  bool durable = false;  // answer when it is durable, not before
};

// The version whose weights to put back; nothing: the last lesson is undone. An empty body will do.
Result<std::optional<int64_t>> parse_rollback(std::string_view body);

// "?limit=" of a list: 1 to 100; empty: 20.
Result<int64_t> parse_limit(const std::string& text);

// "?before=" of a list of versions; empty: nothing.
Result<std::optional<int64_t>> parse_before(const std::string& text);

Result<ChatRequest> parse_chat(std::string_view body);
Result<CompletionRequest> parse_completion(std::string_view body);
Result<TokenizeRequest> parse_tokenize(std::string_view body);
Result<DetokenizeRequest> parse_detokenize(std::string_view body);
// The conversation of a completion that was kept: {"messages", "tools", "chat_template_kwargs"}.
using FindConversation = std::function<Result<std::string>(const std::string& completion)>;

// `find` is asked for what {"completion", "answer"} corrects.
Result<LearnRequest> parse_learn(std::string_view body, const FindConversation& find);

// One line of OpenAI's fine-tuning JSONL: {"messages": [...], "tools": [...]}, with "weight" 0 or 1 per assistant
// message.
Result<LearnExample> parse_training_line(std::string_view line);

// Two answers to one prompt. Only the answers are graded; `json` of both is empty.
struct PreferencePair {
  LearnExample preferred, rejected;
};

// One line of OpenAI's preference JSONL: {"input": {"messages": [...], "tools": [...]}, "preferred_output": [...],
// "non_preferred_output": [...]}, each output a list of assistant messages. Refuses two outputs that are the same.
Result<PreferencePair> parse_preference_line(std::string_view line);

}  // namespace lathe::api
