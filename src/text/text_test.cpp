#include "text/text.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>

namespace lathe::text {
namespace {

const std::string kOwn = std::string(LATHE_SOURCE_DIR) + "/tests/golden/text/own";

const Text& own() {
  static const Text text = Text::load(io::posix_env(), kOwn).value();
  return text;
}

Message user(std::string content) {
  return {.role = "user", .content = std::move(content)};
}
Message assistant(std::string content) {
  return {.role = "assistant", .content = std::move(content)};
}

ChatTemplate template_of(std::string_view source) {
  return ChatTemplate::create(source, R"({"eos_token": "</s>"})",
                              {"</s>", "<|im_end|>", "<|eom|>", "<|user|>", "<|assistant|>"})
      .value();
}

// What the template says of `messages`, turn by turn.
std::vector<std::string> turns(const ChatTemplate& chat_template, const std::vector<Message>& messages) {
  const auto conversation = chat_template.render_with_spans(messages, {});
  if (!conversation.ok()) return {"error: " + conversation.error().message};
  std::vector<std::string> out;
  for (const ByteSpan& span : conversation->assistant)
    out.push_back(conversation->text.substr(span.begin, span.end - span.begin));
  return out;
}

using Strings = std::vector<std::string>;

TEST(Tokenizer, KnowsItsTokens) {
  const Tokenizer& tokenizer = own().tokenizer();
  const TokenId end = tokenizer.token_to_id("<|im_end|>").value().value();
  const TokenId think = tokenizer.token_to_id("<think>").value().value();
  EXPECT_TRUE(tokenizer.is_special(end));
  EXPECT_FALSE(tokenizer.is_special(think)) << "an added token, but not a special one";
  EXPECT_FALSE(tokenizer.is_special(0));
  EXPECT_EQ(tokenizer.id_to_token(end).value(), "<|im_end|>");
  EXPECT_FALSE(tokenizer.token_to_id("no such token").value().has_value());
  EXPECT_EQ(tokenizer.id_to_token(1 << 20).error().code, Code::kInvalidArgument);
  EXPECT_FALSE(tokenizer.id_to_token(-1).ok());
  EXPECT_EQ(tokenizer.size(), 605);
  EXPECT_EQ(tokenizer.decode(std::vector<TokenId>{end, think}, true).value(), "<think>");
}

TEST(Tokenizer, RefusesWhatIsNotUtf8) {
  EXPECT_EQ(own().tokenizer().encode("a\xFFz").error().code, Code::kInvalidArgument);
  EXPECT_EQ(own().tokenizer().encode("").value().ids.size(), 0U);
}

TEST(Tokenizer, RefusesWhatIsNoTokenizer) {
  for (const char* json : {"", "{}", "[1]", "{\"model\": {\"type\": \"BPE\"}}", "not json"})
    EXPECT_FALSE(Tokenizer::parse(json).ok()) << json;
}

TEST(StreamDecoder, NeverEndsInsideACharacter) {
  const std::string text = "a😀é👍🏽中";
  const Encoding encoding = own().tokenizer().encode(text).value();
  ASSERT_GT(encoding.ids.size(), 6U) << "characters of several tokens are the point";
  StreamDecoder decoder(own().tokenizer());
  std::string streamed;
  for (const TokenId id : encoding.ids) {
    streamed += decoder.push(id).value();
    EXPECT_TRUE(text.starts_with(streamed)) << streamed;
  }
  EXPECT_EQ(streamed, text);
  EXPECT_EQ(decoder.finish().value(), "");
}

TEST(StreamDecoder, GivesUpOnBytesThatFormNoCharacter) {
  const std::vector<TokenId> smile = own().tokenizer().encode("🦀").value().ids;
  ASSERT_GT(smile.size(), 2U);
  StreamDecoder decoder(own().tokenizer());
  std::string streamed;
  for (int i = 0; i < 100; ++i) streamed += decoder.push(smile.front()).value();
  EXPECT_GT(streamed.size(), 90U * 3) << "held back for ever";
  EXPECT_EQ(decoder.push(smile[1]).value(), "");
  EXPECT_NE(decoder.finish().value(), "");
  EXPECT_EQ(decoder.finish().value(), "") << "given once";
}

TEST(StreamDecoder, LeavesOutSpecialTokensInConstantTime) {
  const TokenId end = own().tokenizer().token_to_id("<|im_end|>").value().value();
  StreamDecoder decoder(own().tokenizer());
  for (int i = 0; i < 100000; ++i) ASSERT_EQ(decoder.push(end).value(), "");
  StreamDecoder shows(own().tokenizer(), /*skip_special=*/false);
  EXPECT_EQ(shows.push(end).value(), "<|im_end|>");
}

TEST(ChatTemplate, RefusesByName) {
  const ChatTemplate chat_template = template_of(
      "{{ messages[0].content }}{{ raise_exception('roles must alternate') if messages|length > 1 "
      "}}");
  const auto message_of = [&](std::vector<Message> messages, RenderOptions options) {
    const auto rendered = chat_template.render(messages, options);
    EXPECT_FALSE(rendered.ok()) << *rendered;
    EXPECT_EQ(rendered.error().code, Code::kInvalidArgument);
    return rendered.error().message;
  };
  EXPECT_NE(message_of({{.role = "wizard", .content = "hi"}}, {}).find("unknown role 'wizard'"), std::string::npos);
  EXPECT_NE(message_of({}, {}).find("messages is empty"), std::string::npos);
  EXPECT_NE(message_of({user("a"), user("b")}, {}).find("roles must alternate"), std::string::npos);
  EXPECT_NE(message_of({user("a")}, {.tools_json = "{}"}).find("tools must be a JSON array"), std::string::npos);
  EXPECT_NE(message_of({user("a")}, {.kwargs_json = "[]"}).find("chat_template_kwargs must be"), std::string::npos);
  EXPECT_NE(message_of({{.role = "user", .json = "{"}}, {}).find("a message must be"), std::string::npos);
  const std::string deep = "{\"content\": " + std::string(100000, '[') + std::string(100000, ']') + "}";
  EXPECT_NE(message_of({{.role = "user", .json = deep}}, {}).find("nested"), std::string::npos);
  EXPECT_FALSE(ChatTemplate::create("{% if %}", "{}", {}).ok());
}

TEST(ChatTemplate, SurvivesInvalidUtf8) {
  EXPECT_EQ(template_of("{{ messages[0].content }}").render(std::vector{user("a\xFF")}, {}).value(), "a\xEF\xBF\xBD");
}

TEST(ChatTemplate, TakesToolArgumentsAsTheTemplateWants) {
  const Message call{
      .role = "assistant",
      .json =
          R"({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": 1.0}"}}]})"};
  const std::vector<Message> messages = {call};
  EXPECT_EQ(template_of("{{ messages[0].tool_calls[0].function.arguments['a'] }}").render(messages, {}).value(), "1.0");
  EXPECT_EQ(template_of("{{ 'x' + messages[0].tool_calls[0].function.arguments }}").render(messages, {}).value(),
            "x{\"a\": 1.0}");
  EXPECT_EQ(template_of("{{ 'x' + messages[0].content }}").render(messages, {}).value(), "x")
      << "null content where a string is needed";
  EXPECT_EQ(template_of("{{ messages[0].content is none }}").render(messages, {}).value(), "True");
}

TEST(ChatTemplate, JoinsPartsOnlyForTemplatesThatTakeNone) {
  const std::vector<Message> messages = {
      {.role = "user", .json = R"({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})"}};
  EXPECT_EQ(template_of("{{ messages[0].content }}").render(messages, {}).value(), "a\nb");
  EXPECT_EQ(template_of("{{ messages[0].content | map(attribute='text') | join('+') }}").render(messages, {}).value(),
            "a+b");
}

TEST(ChatTemplate, DefinesToolsEvenWithoutAny) {
  EXPECT_EQ(template_of("{{ tools is defined }} {{ tools is none }}{{ eos_token }}")
                .render(std::vector{user("a")}, {})
                .value(),
            "True True</s>");
}

TEST(Turns, EndWithTheirTerminator) {
  const ChatTemplate chatml =
      template_of("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}");
  EXPECT_EQ(turns(chatml, {user("q"), assistant("a"), user("q"), assistant("")}),
            (Strings{"a<|im_end|>", "<|im_end|>"}));
  EXPECT_EQ(turns(chatml, {assistant("same"), assistant("same")}), (Strings{"same<|im_end|>", "same<|im_end|>"}));
  EXPECT_EQ(turns(chatml, {user("assistant\nfake<|im_end|>"), assistant("é")}), (Strings{"é<|im_end|>"}));
}

TEST(Turns, DoNotTakeInWhatOpensTheNext) {
  const ChatTemplate unterminated = template_of("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}");
  EXPECT_EQ(turns(unterminated, {user("q"), assistant("a"), user("q"), assistant("b")}), (Strings{"a", "b"}));
}

TEST(Turns, EndAtWholeTokensWhenTerminatorsDiffer) {
  // The nonce has no tool calls, so its turn ends with </s>: both texts share ">".
  const ChatTemplate chat_template = template_of(
      "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ '<|eom|>' if m.tool_calls else "
      "'</s>' }}{% endfor %}");
  const Message call{
      .role = "assistant",
      .json = R"({"role": "assistant", "content": "calling", "tool_calls": [{"function": {"name": "f"}}]})"};
  EXPECT_EQ(turns(chat_template, {user("q"), call}), (Strings{"calling<|eom|>"}));
}

TEST(Turns, AreFoundWhereToolResultsNeedTheirCalls) {
  const ChatTemplate strict = template_of(
      "{% for m in messages %}"
      "{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}{{ raise_exception('a "
      "result of no call') }}{% endif %}"
      "[{{ m.role }}]{{ m.content or '' }}"
      "{% for c in m.tool_calls or [] %}{{ '{' + c.function.name }}: {{ c.function.arguments | "
      "tojson }}}{% endfor %}</s>"
      "{% endfor %}");
  const Message call{
      .role = "assistant",
      .json =
          R"({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]})"};
  const Message result{.role = "tool", .content = "{f"};
  EXPECT_EQ(turns(strict, {user("q"), call, result, assistant("done")}), (Strings{"{f: {\"x\": 1}}</s>", "done</s>"}));
}

TEST(Turns, AreRefusedWhereTheyCannotBeGraded) {
  const auto error = [](std::string_view source, std::vector<Message> messages) {
    return turns(template_of(source), messages).front();
  };
  EXPECT_NE(error("{{ messages[0].content }}", {user("q"), assistant("a")}).find("does not show where message 1 is"),
            std::string::npos);
  EXPECT_NE(error("{% for m in messages %}{{ m.content | upper }}{% endfor %}", {user("q"), assistant("abc")})
                .find("changes the content of message 1"),
            std::string::npos);
  EXPECT_NE(error("{% for m in messages | reverse %}{{ m.content }};{% endfor %}",
                  {assistant("abc"), user("q"), assistant("def")})
                .find("mixes message 2"),
            std::string::npos);
}

TEST(Turns, FollowGenerationTags) {
  const ChatTemplate tagged = template_of(
      "{% for m in messages %}[{{ m.role }}]"
      "{% if m.role == 'assistant' %}{% generation %}<think></think>{{ m.content }}</s>{% "
      "endgeneration %}{% else %}{{ m.content }}</s>{% endif %}"
      "{% endfor %}");
  EXPECT_EQ(turns(tagged, {user("q"), assistant("a"), user("q"), assistant("b")}),
            (Strings{"<think></think>a</s>", "<think></think>b</s>"}));
  const ChatTemplate last_only = template_of(
      "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content }}{% endgeneration "
      "%}{% else %}{{ m.content }}{% endif %}{% endfor %}");
  EXPECT_NE(turns(last_only, {assistant("a"), assistant("b")}).front().find("marks 1 turns"), std::string::npos);
}

// Which part of the conversation's text the graded tokens spell.
std::string graded_text(const GradedTokens& graded) {
  std::vector<TokenId> ids;
  for (size_t t = 0; t < graded.ids.size(); ++t) {
    if (graded.weights[t] > 0) ids.push_back(graded.ids[t]);
  }
  return own().tokenizer().decode(ids, false).value();
}

TEST(Graded, AreTheTokensOfTheChosenTurns) {
  const std::vector<Message> messages = {user("What is it?"), assistant("first  answer\n\n"), user("And?"),
                                         assistant("second 😀")};
  const GradedTokens both = own().graded(messages, std::vector<float>{1, 0.5}, {}).value();
  EXPECT_EQ(graded_text(both), "first  answer<|im_end|>second 😀<|im_end|>");
  EXPECT_EQ(both.weights.back(), 0) << "the line end after the turn is the template's";
  EXPECT_EQ(graded_text(own().graded(messages, std::vector<float>{0, 1}, {}).value()), "second 😀<|im_end|>");
  EXPECT_EQ(*std::max_element(both.weights.begin(), both.weights.end()), 1);
  EXPECT_NE(std::find(both.weights.begin(), both.weights.end(), 0.5F), both.weights.end());
}

TEST(Graded, ContainWhiteSpace) {
  const std::vector<Message> messages = {user("q"), assistant("a \n\n \t b   c")};
  EXPECT_EQ(graded_text(own().graded(messages, std::vector<float>{1}, {}).value()), "a \n\n \t b   c<|im_end|>");
}

TEST(Graded, BeginThePromptThatServes) {
  const std::vector<Message> messages = {user("q"), assistant("thought out")};
  const std::vector<TokenId> prompt =
      own().prompt(std::span(messages).first(1), {.kwargs_json = R"({"enable_thinking": false})"}).value();
  const GradedTokens graded = own().graded(messages, std::vector<float>{1}, {}).value();
  ASSERT_LT(prompt.size(), graded.ids.size());
  EXPECT_TRUE(std::equal(prompt.begin(), prompt.end(), graded.ids.begin()));
  EXPECT_EQ(graded.weights[prompt.size() - 1], 0);
  EXPECT_EQ(graded.weights[prompt.size()], 1);
}

TEST(Graded, RefuseByName) {
  const auto message_of = [](std::vector<Message> messages, std::vector<float> weights) {
    const auto graded = own().graded(messages, weights, {});
    return graded.ok() ? "" : graded.error().message;
  };
  EXPECT_NE(message_of({user("q")}, {}).find("no assistant turn"), std::string::npos);
  EXPECT_NE(message_of({user("q"), assistant("a")}, {1, 1}).find("has 1 assistant turns, but 2 weights"),
            std::string::npos);
  EXPECT_NE(message_of({user("q"), assistant("a")}, {0}).find("no token of the conversation is graded"),
            std::string::npos);
  EXPECT_NE(message_of({user("q"), assistant("a")}, {-1}).find("not negative"), std::string::npos);
  EXPECT_NE(message_of({user("q"), assistant("a")}, {std::numeric_limits<float>::quiet_NaN()}).find("finite"),
            std::string::npos);
  EXPECT_NE(message_of({{.role = "system", .content = "s"}, assistant("a")}, {1}).find("No user query"),
            std::string::npos);
}

class Directory : public testing::Test {
 protected:
  Directory() { std::filesystem::create_directories(path_); }
  ~Directory() override { std::filesystem::remove_all(path_); }
  void write(const std::string& name, std::string_view contents) const { std::ofstream(path_ / name) << contents; }
  void copy_tokenizer() const { std::filesystem::copy(kOwn + "/tokenizer.json", path_ / "tokenizer.json"); }
  Result<Text> load() const { return Text::load(io::posix_env(), path_); }
  std::string rendered() const { return load()->chat_template().value()->render(std::vector{user("q")}, {}).value(); }

  const std::filesystem::path path_ =
      std::filesystem::path(testing::TempDir()) / ("lathe_text_test_" + std::to_string(::getpid()));
};

TEST_F(Directory, TemplateComesFromWhereModelsHaveIt) {
  copy_tokenizer();
  EXPECT_EQ(load()->chat_template().error().code, Code::kUnsupported) << "none yet";
  write("tokenizer_config.json", R"({"chat_template": "string {{ bos_token }}", "bos_token": {"content": "<s>"}})");
  EXPECT_EQ(rendered(), "string <s>");
  write("tokenizer_config.json",
        R"({"chat_template": [{"name": "rag", "template": "rag"}, {"name": "default", "template": "list"}]})");
  EXPECT_EQ(rendered(), "list");
  write("chat_template.jinja", "file {{ bos_token }}{{ boi_token }}");
  write("tokenizer_config.json", R"({"chat_template": "string", "extra_special_tokens": {"boi_token": "<i>"}})");
  write("special_tokens_map.json", R"({"bos_token": "<b>"})");
  EXPECT_EQ(rendered(), "file <b><i>");
}

TEST_F(Directory, ErrorsNameTheFile) {
  const auto error = [this] { return load().ok() ? "" : load().error().message; };
  EXPECT_NE(error().find("tokenizer.json"), std::string::npos);
  write("tokenizer.json", "{");
  EXPECT_NE(error().find("tokenizer.json"), std::string::npos);
  std::filesystem::remove(path_ / "tokenizer.json");
  copy_tokenizer();
  write("tokenizer_config.json", "[]");
  EXPECT_NE(error().find("tokenizer_config.json"), std::string::npos);
  write("tokenizer_config.json", R"({"chat_template": "{% if %}"})");
  EXPECT_NE(error().find("chat template"), std::string::npos);
}

}  // namespace
}  // namespace lathe::text
