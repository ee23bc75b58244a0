#include "api/requests.h"

#include <gtest/gtest.h>

namespace lathe::api {
namespace {

using Weights = std::vector<float>;

// Two assistant turns with `extra` in the first and second, and `fields` after the messages.
std::string line(const std::string& first, const std::string& second, const std::string& fields) {
  return R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b")" + first +
         R"(},{"role":"user","content":"c"},{"role":"assistant","content":"d")" + second + "}]" + fields + "}";
}

Result<LearnRequest> learn(const std::string& body) {
  return parse_learn(body, [](const std::string& id) -> Result<std::string> {
    if (id != "c") return not_found("no completion " + id);
    return std::string(R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"x","weight":1},)"
                       R"({"role":"user","content":"r"}],"tools":[{"n":1}],"chat_template_kwargs":null})");
  });
}

std::string refusal(const Result<LearnExample>& parsed) {
  return parsed.ok() ? "accepted" : parsed.error().message;
}

TEST(TrainingLine, WithoutWeightsEveryAssistantTurnIsLearned) {
  EXPECT_EQ(parse_training_line(line("", "", ""))->turn_weights, (Weights{1, 1}));
  EXPECT_EQ(learn(line("", "", ""))->examples[0].turn_weights, (Weights{0, 1})) << "a correction: the last";
}

TEST(TrainingLine, WeightsAndTurnsChoose) {
  EXPECT_EQ(parse_training_line(line(R"(,"weight":0)", "", ""))->turn_weights, (Weights{0, 1}));
  EXPECT_EQ(parse_training_line(line(R"(,"weight":0.25)", R"(,"weight":null)", ""))->turn_weights, (Weights{0.25, 1}));
  EXPECT_EQ(learn(line(R"(,"weight":0.5)", "", ""))->examples[0].turn_weights, (Weights{0.5, 1}));
  EXPECT_EQ(learn(line("", "", R"(,"turns":"all")"))->examples[0].turn_weights, (Weights{1, 1}));
  EXPECT_EQ(learn(line("", "", R"(,"turns":[0])"))->examples[0].turn_weights, (Weights{1, 0}));
  EXPECT_EQ(learn(line("", R"(,"weight":3)", R"(,"turns":[1])"))->examples[0].turn_weights, (Weights{0, 3}));
}

TEST(TrainingLine, TheWeightIsNotShownToTheTemplate) {
  const auto weighted = parse_training_line(line(R"(,"weight":1)", "", ""));
  EXPECT_TRUE(weighted->messages[1].json.empty());
}

TEST(TrainingLine, RefusesByName) {
  EXPECT_EQ(refusal(parse_training_line("not json")), "the line is not valid JSON");
  EXPECT_EQ(refusal(parse_training_line("[]")), "the line must be a JSON object");
  EXPECT_EQ(refusal(parse_training_line("{}")), "'messages' is missing");
  EXPECT_EQ(refusal(parse_training_line(line(R"(,"weight":-1)", "", ""))),
            "'weight' of a message must be a number >= 0");
  EXPECT_EQ(refusal(parse_training_line(line(R"(,"weight":"1")", "", ""))),
            "'weight' of a message must be a number >= 0");
  EXPECT_EQ(refusal(parse_training_line(R"({"messages":[{"role":"user","content":"a"}]})")),
            "the conversation has no assistant turn to learn");
  for (const char* turns : {"2", "-1", "[2]", "\"first\"", "{\"a\":0}", "[[0]]"}) {
    EXPECT_EQ(refusal(parse_training_line(line("", "", std::string(",\"turns\":") + turns))),
              "'turns' must be \"last\", \"all\" or a list of indices of assistant turns, 0 to 1")
        << turns;
  }
  EXPECT_EQ(learn(line("", "", R"(,"stepz":3)")).error().message, "'stepz' is not a field of this request");
  EXPECT_EQ(learn(line("", "", R"(,"report":"all")")).error().message, "'report' must be \"tensors\"");
}

TEST(Generation, WrongTypesAreNamed) {
  const auto refused = [](const std::string& fields) {
    const auto parsed = parse_chat(R"({"messages":[{"role":"user","content":"a"}],)" + fields + "}");
    return parsed.ok() ? "accepted" : parsed.error().message;
  };
  EXPECT_EQ(refused(R"("seed":1)"), "accepted");
  EXPECT_EQ(refused(R"("temperature":"hot")"), "'temperature' must be a number");
  EXPECT_EQ(refused(R"("stream_options":[])"), "'stream_options' must be an object");
  EXPECT_EQ(refused(R"("stream_options":{"include_usage":1})"), "'stream_options.include_usage' must be true or false");
  EXPECT_EQ(refused(R"("stream_options":{"usage":true})"), "'stream_options.usage' is not a field of this request");
  EXPECT_EQ(refused(R"("stop_token_ids":[-1])"), "'stop_token_ids' must be a list of token ids");
  EXPECT_EQ(refused(R"("stop":{"a":1})"), "'stop' must be a string or a list of strings");
  EXPECT_EQ(refused(R"("n":9)"), "'n' must be an integer from 1 to 8");
}

TEST(Generation, ValuesThatMeanNothingAreNothing) {
  const auto read = [](const std::string& fields) {
    return parse_chat(R"({"messages":[{"role":"user","content":"a"}],)" + fields + "}");
  };
  EXPECT_FALSE(read(R"("seed":-1)")->generation.sampling.seed.has_value());
  EXPECT_EQ(read(R"("seed":-2)")->generation.sampling.seed, static_cast<uint64_t>(-2));
  EXPECT_FALSE(read(R"("max_tokens":-1)")->generation.max_tokens.has_value());
  EXPECT_EQ(read(R"("max_tokens":1e3)")->generation.max_tokens, 1000);
  EXPECT_EQ(read(R"("max_completion_tokens":-1,"max_tokens":5)")->generation.max_tokens, 5);
  EXPECT_EQ(read(R"("temprature":0.5)").error().message, "'temprature' is not a field of this request");
  EXPECT_TRUE(read(R"("temprature":null)").ok());
  EXPECT_EQ(read(R"("best_of":3,"n":2)").error().message, "'best_of' must be the same as 'n'");
  EXPECT_EQ(read(R"("repeat_penalty":1.1)").error().message,
            "'repeat_penalty' cannot be anything but 1 here; use 'repetition_penalty'");
  EXPECT_EQ(read(R"("logit_bias":{"3":-100,"4":2.5})")->generation.sampling.logit_bias,
            (std::vector<std::pair<int32_t, float>>{{3, -100.F}, {4, 2.5F}}));
  for (const char* bias : {"[]", R"({"-1":1})", R"({"3.5":1})", R"({"":1})", R"({"3":101})", R"({"3":"1"})"})
    EXPECT_FALSE(read(std::string(R"("logit_bias":)") + bias).ok()) << bias;
}

TEST(Correction, IsTheKeptConversationWithAnotherAnswer) {
  const auto request = learn(R"({"completion":"c","answer":"better","steps":3})");
  ASSERT_TRUE(request.ok()) << request.error().message;
  EXPECT_EQ(request->steps, 3);
  const LearnExample& example = request->examples.at(0);
  ASSERT_EQ(example.messages.size(), 4U);
  EXPECT_EQ(example.messages[3].role, "assistant");
  EXPECT_EQ(example.messages[3].content, "better");
  EXPECT_EQ(example.turn_weights, (Weights{0, 1})) << "the last turn, whatever the messages carry";
  EXPECT_EQ(example.render.tools_json, R"([{"n":1}])");
  EXPECT_EQ(example.completion, "c");
  EXPECT_EQ(learn(R"({"examples":[{"completion":"c","answer":"a"},{"completion":"c","answer":"b"}]})")->examples.size(),
            2U);
}

TEST(Correction, RefusesByName) {
  EXPECT_EQ(learn(R"({"completion":"d","answer":"a"})").error().code, Code::kNotFound);
  EXPECT_NE(learn(R"({"completion":"c"})").error().message.find("'answer' is missing"), std::string::npos);
  EXPECT_EQ(learn(R"({"completion":3,"answer":"a"})").error().message, "'completion' must be a string");
  for (const char* field : {"messages", "turns", "tools", "chat_template_kwargs"}) {
    EXPECT_EQ(learn(R"({"completion":"c","answer":"a",")" + std::string(field) + R"(":[]})").error().message,
              "'" + std::string(field) + "' is not a field of this request");
  }
  EXPECT_EQ(learn(R"({"messages":[{"role":"user","content":"q"}],"answer":"a"})").error().code, Code::kInvalidArgument);
}

}  // namespace
}  // namespace lathe::api
