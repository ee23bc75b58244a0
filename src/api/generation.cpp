#include "api/generation.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

namespace lathe::api {
namespace {

constexpr int64_t kManyTokens = 1 << 24;

void read_stop(Fields& fields, GenerationRequest& out) {
  if (!fields.has("stop")) return;
  const Json& stop = fields.at("stop");
  for (const Json& entry : stop.is_array() ? stop : Json::array({stop})) {
    if (!entry.is_string()) return fields.complain("stop", "must be a string or a list of strings");
    if (!entry.get<std::string>().empty()) out.stop.push_back(entry.get<std::string>());
  }
  if (out.stop.size() > 16) fields.complain("stop", "may have at most 16 strings");
}

// {"50256": -100}: by token id.
void read_logit_bias(Fields& fields, data::Sampling& out) {
  if (!fields.has("logit_bias")) return;
  const Json& bias = fields.at("logit_bias");
  const char* wrong = "must be an object of token ids, each with a number from -100 to 100";
  if (!bias.is_object()) return fields.complain("logit_bias", wrong);
  for (const auto& [token, value] : bias.items()) {
    const bool digits = !token.empty() && token.size() < 10 &&
                        std::all_of(token.begin(), token.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!digits || !value.is_number() || !(std::abs(value.get<double>()) <= 100))
      return fields.complain("logit_bias", wrong);
    out.logit_bias.emplace_back(std::stoi(token), value.get<float>());
  }
}

void read_sampling(Fields& fields, data::Sampling& out) {
  out.temperature = fields.number("temperature").value_or(out.temperature);
  out.top_p = fields.number("top_p").value_or(out.top_p);
  out.top_k = std::max<int64_t>(0, fields.integer("top_k", -1, 1 << 30).value_or(out.top_k));  // vLLM's -1 means all
  out.min_p = fields.number("min_p").value_or(out.min_p);
  out.repetition_penalty = fields.number("repetition_penalty").value_or(out.repetition_penalty);
  out.presence_penalty = fields.number("presence_penalty").value_or(out.presence_penalty);
  out.frequency_penalty = fields.number("frequency_penalty").value_or(out.frequency_penalty);
  const auto seed = fields.integer("seed", INT64_MIN, INT64_MAX);
  if (seed && *seed != -1) out.seed = static_cast<uint64_t>(*seed);  // llama.cpp's and vLLM's -1 means any
  read_logit_bias(fields, out);
}

// As many tokens as there is room for: absent, or the -1 of llama.cpp and LM Studio.
std::optional<int64_t> read_max_tokens(Fields& fields, const char* name) {
  const auto max = fields.integer(name, -1, kManyTokens);
  return max == -1 ? std::nullopt : max;
}

void read_stream_options(Fields& fields, GenerationRequest& out) {
  if (!fields.has("stream_options")) return;
  if (!fields.at("stream_options").is_object()) return fields.complain("stream_options", "must be an object");
  Fields options(fields.at("stream_options"));
  out.include_usage = options.flag("include_usage").value_or(false);
  out.continuous_usage = options.flag("continuous_usage_stats").value_or(false);
  options.has("include_obfuscation");  // padding against eavesdroppers, which a client may not count on
  options.refuse_unknown();
  if (const Status status = options.status(); !status.ok())
    fields.complain("'stream_options." + status.error().message.substr(1));
}

// Fields of OpenAI, vLLM and llama.cpp that say nothing about the answer.
constexpr std::array<const char*, 18> kWithoutInfluence = {"user",
                                                           "metadata",
                                                           "store",
                                                           "service_tier",
                                                           "safety_identifier",
                                                           "prompt_cache_key",
                                                           "prompt_cache_retention",
                                                           "prediction",
                                                           "priority",
                                                           "request_id",
                                                           "cache_salt",
                                                           "cache_prompt",
                                                           "id_slot",
                                                           "slot_id",
                                                           "timings_per_token",
                                                           "include_reasoning",
                                                           "spaces_between_special_tokens",
                                                           "enable_response_messages"};

// Fields whose other values would give another answer, and the value that Lathe can do, as JSON.
struct OnlyValue {
  const char* name;
  const char* json;
  const char* remedy = "";
};
constexpr std::array<OnlyValue, 36> kOnlyValues = {
    {{"response_format", R"({"type":"text"})"},
     {"tool_choice", "\"auto\""},
     {"parallel_tool_calls", "true"},
     {"reasoning_effort", "null", "; put it into 'chat_template_kwargs'"},
     {"use_beam_search", "false"},
     {"length_penalty", "1"},
     {"early_stopping", "false"},
     {"include_stop_str_in_output", "false"},
     {"skip_special_tokens", "true"},
     {"continue_final_message", "false"},
     {"echo", "false"},
     {"suffix", "\"\""},
     {"modalities", "[\"text\"]"},
     {"verbosity", "\"medium\""},
     {"functions", "[]", "; use 'tools'"},
     {"function_call", "\"none\"", "; use 'tool_choice'"},
     {"bad_words", "[]"},
     {"documents", "[]"},
     {"logits_processors", "[]"},
     {"return_tokens_as_token_ids", "false"},
     {"return_token_ids", "false"},
     {"return_token_strs", "false"},
     {"typical_p", "1"},
     {"typ_p", "1"},
     {"tfs_z", "1"},
     {"top_a", "0"},
     {"mirostat", "0"},
     {"dry_multiplier", "0"},
     {"xtc_probability", "0"},
     {"dynatemp_range", "0"},
     {"repeat_penalty", "1", "; use 'repetition_penalty'"},
     {"top_n_sigma", "-1"},
     {"n_probs", "0", "; use 'logprobs'"},
     {"n_predict", "-1", "; use 'max_tokens'"},
     {"enable_thinking", "null", "; put it into 'chat_template_kwargs'"},
     {"thinking", "null", "; put it into 'chat_template_kwargs'"}}};

}  // namespace

void read_generation(Fields& fields, GenerationRequest& out) {
  out.model = fields.text("model").value_or("");
  read_sampling(fields, out.sampling);
  out.max_tokens = read_max_tokens(fields, "max_completion_tokens");
  if (const auto max = read_max_tokens(fields, "max_tokens"); !out.max_tokens) out.max_tokens = max;
  out.min_tokens = fields.integer("min_tokens", 0, kManyTokens).value_or(0);
  if (out.max_tokens && out.min_tokens > *out.max_tokens)
    fields.complain("min_tokens", "must not be more than 'max_tokens'");
  out.stop_token_ids = fields.token_ids("stop_token_ids");
  out.ignore_eos = fields.flag("ignore_eos").value_or(false);
  out.n = fields.integer("n", 1, 8).value_or(1);
  if (fields.integer("best_of", 1, INT64_MAX).value_or(out.n) != out.n)
    fields.complain("best_of", "must be the same as 'n'");
  out.stream = fields.flag("stream").value_or(false);
  read_stop(fields, out);
  read_stream_options(fields, out);
}

void refuse_other_fields(Fields& fields) {
  for (const char* name : kWithoutInfluence) fields.has(name);
  for (const OnlyValue& only : kOnlyValues) {
    if (fields.asked(only.name) || !fields.has(only.name)) continue;
    if (fields.at(only.name) == Json::parse(only.json)) continue;
    const bool never = std::string_view(only.json) == "null";
    fields.complain(only.name, (never ? "is not a field of this request"
                                      : std::string("cannot be anything but ") + only.json + " here") +
                                   only.remedy);
  }
  fields.refuse_unknown();
}

}  // namespace lathe::api
