// What transformers makes of the same strings and conversations (tools/golden_text.py).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "text/foreign_tokens.h"
#include "text/text.h"

namespace lathe::text {
namespace {

using Json = nlohmann::ordered_json;

const std::string kGolden = std::string(LATHE_SOURCE_DIR) + "/tests/golden/text/";

Json read_json(const std::string& path) {
  std::ifstream file(path);
  return Json::parse(file);
}

const Json& cases() {
  static const Json json = read_json(kGolden + "cases.json");
  return json;
}

std::string fingerprint(std::span<const TokenId> ids) {
  uint64_t hash = 0xCBF29CE484222325U;
  for (const TokenId id : ids) {
    for (int shift = 0; shift < 32; shift += 8)
      hash = (hash ^ ((static_cast<uint32_t>(id) >> shift) & 0xFFU)) * 0x100000001B3U;
  }
  char text[64];
  std::snprintf(text, sizeof text, "%zu:%016lx", ids.size(), static_cast<unsigned long>(hash));
  return text;
}

std::string fingerprint_of_bytes(const std::string& bytes) {
  std::vector<TokenId> ids;
  for (const char c : bytes) ids.push_back(static_cast<unsigned char>(c));
  return fingerprint(ids);
}

std::vector<Message> messages_of(const Json& conversation) {
  std::vector<Message> messages;
  for (const Json& json : conversation["messages"]) messages.push_back({.role = json["role"], .json = json.dump()});
  return messages;
}

RenderOptions options_of(const Json& conversation) {
  RenderOptions options{.add_generation_prompt = conversation["add_generation_prompt"]};
  if (conversation.contains("tools")) options.tools_json = conversation["tools"].dump();
  if (conversation.contains("kwargs")) options.kwargs_json = conversation["kwargs"].dump();
  return options;
}

std::vector<ByteSpan> spans_of(const Json& json) {
  std::vector<ByteSpan> spans;
  for (const Json& span : json) spans.push_back({span[0], span[1]});
  return spans;
}

std::filesystem::path cache() {
  if (const char* set = std::getenv("LATHE_CACHE"); set != nullptr && *set != '\0') return set;
  const char* home = std::getenv("HOME");
  return std::filesystem::path(home == nullptr ? "" : home) / ".cache/lathe";
}

std::filesystem::path directory_of(const std::string& model) {
  if (model == "own") return kGolden + "own";
  if (model == "smollm2") return cache() / "models/SmolLM2-135M-Instruct";
  return cache() / "tokenizers" / model;
}

// One model: the golden file of its name, and its directory.
class Golden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::filesystem::path directory = directory_of(GetParam());
    if (!std::filesystem::exists(directory / "tokenizer.json")) {
      GTEST_SKIP() << directory
                   << " is not there; scripts/prepare_model.py and scripts/fetch_tokenizers.py "
                      "fetch what these tests read";
    }
    static std::map<std::string, Loaded> loaded;  // the larger ones take a second
    if (!loaded.contains(GetParam())) {
      Result<Text> text = Text::load(io::posix_env(), directory);
      ASSERT_TRUE(text.ok()) << text.error().message;
      loaded.emplace(GetParam(), Loaded{std::move(text).value(), read_json(kGolden + GetParam() + ".json")});
    }
    loaded_ = &loaded.at(GetParam());
  }

  struct Loaded {
    Text text;
    Json golden;
  };
  const Text& text() const { return loaded_->text; }
  const Json& golden() const { return loaded_->golden; }

  Loaded* loaded_ = nullptr;
};

TEST_P(Golden, EncodesStrings) {
  const Json& strings = cases()["strings"];
  ASSERT_EQ(strings.size(), golden()["strings"].size());
  for (size_t i = 0; i < strings.size(); ++i) {
    const std::string string = strings[i];
    const Encoding encoding = text().tokenizer().encode(string).value();
    EXPECT_EQ(fingerprint(encoding.ids), golden()["strings"][i]) << strings[i];
    const std::string skipped = text().tokenizer().decode(encoding.ids, true).value();
    EXPECT_EQ(fingerprint_of_bytes(skipped), golden()["skipped"][i]) << strings[i] << " -> " << skipped;
  }
}

// White space included. Only what the tokenizer drops or composes may lie in no span.
TEST_P(Golden, SpansCoverTheText) {
  for (const Json& json : cases()["strings"]) {
    const std::string string = json;
    const Encoding encoding = text().tokenizer().encode(string).value();
    const bool complete = text().tokenizer().decode(encoding.ids, false).value() == string;
    size_t covered = 0;
    for (const ByteSpan& span : encoding.spans) {
      if (complete) {
        ASSERT_LE(span.begin, covered) << json << ": a gap before byte " << span.begin;
      }
      ASSERT_LT(span.begin, span.end) << json;
      ASSERT_LE(covered, span.end) << json;
      covered = span.end;
    }
    if (complete) {
      EXPECT_EQ(covered, string.size()) << json;
    }
  }
}

TEST_P(Golden, StreamsTheTextOfTheWhole) {
  for (const Json& json : cases()["strings"]) {
    const std::vector<TokenId> ids = text().tokenizer().encode(std::string(json)).value().ids;
    StreamDecoder decoder(text().tokenizer(), /*skip_special=*/false);
    std::string streamed;
    for (const TokenId id : ids) {
      const std::string piece = decoder.push(id).value();
      EXPECT_FALSE(piece.ends_with("\xEF\xBF\xBD")) << json;
      streamed += piece;
    }
    streamed += decoder.finish().value();
    EXPECT_EQ(streamed, text().tokenizer().decode(ids, false).value()) << json;
  }
}

class GoldenTemplate : public Golden {};

TEST_P(GoldenTemplate, RendersConversations) {
  const ChatTemplate& chat_template = *text().chat_template().value();
  const Json& conversations = cases()["conversations"];
  ASSERT_EQ(conversations.size(), golden()["conversations"].size());
  for (size_t i = 0; i < conversations.size(); ++i) {
    SCOPED_TRACE(conversations[i].dump());
    const Json& expected = golden()["conversations"][i];
    const Result<std::string> rendered =
        chat_template.render(messages_of(conversations[i]), options_of(conversations[i]));
    if (expected.contains("error")) {
      EXPECT_FALSE(rendered.ok()) << "transformers says: " << expected["error"]
                                  << "\nrendered: " << (rendered.ok() ? *rendered : "");
      continue;
    }
    ASSERT_TRUE(rendered.ok()) << rendered.error().message;
    EXPECT_EQ(*rendered, expected["text"]);
    EXPECT_EQ(fingerprint(text().tokenizer().encode(std::string(expected["text"])).value().ids), expected["ids"]);
  }
}

TEST_P(GoldenTemplate, FindsAssistantTurns) {
  size_t turns = 0;
  const Json& conversations = cases()["conversations"];
  for (size_t i = 0; i < conversations.size(); ++i) {
    if (!golden()["conversations"][i].contains("spans")) continue;
    SCOPED_TRACE(conversations[i].dump());
    const auto found =
        text().chat_template().value()->render_with_spans(messages_of(conversations[i]), options_of(conversations[i]));
    ASSERT_TRUE(found.ok()) << found.error().message;
    const std::vector<ByteSpan> expected = spans_of(golden()["conversations"][i]["spans"]);
    ASSERT_EQ(found->assistant.size(), expected.size()) << found->text;
    for (size_t turn = 0; turn < expected.size(); ++turn) {
      const auto shown = [&](ByteSpan span) { return found->text.substr(span.begin, span.end - span.begin); };
      EXPECT_EQ(shown(found->assistant[turn]), shown(expected[turn])) << found->text;
      EXPECT_EQ(found->assistant[turn], expected[turn]);
      ++turns;
    }
  }
  EXPECT_GT(turns, 100);
}

// Another program's tokens give the same result as the text. But a line end that the template
// puts before a thought may be graded too: the nonce thinks nothing, and there the line end is one token with the next
// one.
TEST_P(GoldenTemplate, FindsAssistantTurnsByTokens) {
  const auto is_special = [this](TokenId id) { return text().tokenizer().is_special(id); };
  size_t equal = 0, wider = 0;
  const Json& conversations = cases()["conversations"];
  for (size_t i = 0; i < conversations.size(); ++i) {
    if (!golden()["conversations"][i].contains("spans")) continue;
    SCOPED_TRACE(conversations[i].dump());
    const std::vector<Message> messages = messages_of(conversations[i]);
    RenderOptions options = options_of(conversations[i]);
    options.add_generation_prompt = false;
    const auto turns =
        std::count_if(messages.begin(), messages.end(), [](const auto& m) { return m.role == "assistant"; });
    const std::vector<float> weights(static_cast<size_t>(turns), 1);
    const auto ours = text().graded(messages, weights, options);
    if (!ours.ok()) continue;
    const auto tokenize = [&](std::span<const Message> changed) { return text().prompt(changed, options); };
    const auto theirs = graded_elsewhere(messages, weights, tokenize, is_special);
    ASSERT_TRUE(theirs.ok()) << theirs.error().message;
    ASSERT_EQ(theirs->ids, ours->ids);
    ++(theirs->weights == ours->weights ? equal : wider);
    for (size_t t = 0; t < ours->ids.size(); ++t) {
      if (theirs->weights[t] == ours->weights[t]) continue;
      EXPECT_EQ(theirs->weights[t], 1);
      EXPECT_EQ(text().tokenizer().decode({&ours->ids[t], 1}, false).value(), "\n");
    }
  }
  EXPECT_GT(equal, 4 * wider) << wider;
}

const std::vector<Message> kHi = {{.role = "user", .content = "hi"}};

// What one Jinja construct after the other prints.
TEST(Expressions, PrintAsInTransformers) {
  for (const Json& golden : read_json(kGolden + "expressions.json")) {
    SCOPED_TRACE(golden["source"]);
    const auto chat_template = ChatTemplate::create(std::string(golden["source"]), "{}", {});
    Result<std::string> rendered = internal("not a template");
    if (chat_template.ok())
      rendered =
          chat_template->render(kHi, {.add_generation_prompt = false, .kwargs_json = golden["variables"].dump()});
    if (golden.contains("error")) {
      EXPECT_FALSE(rendered.ok()) << "transformers says: " << golden["error"]
                                  << "\nrendered: " << (rendered.ok() ? *rendered : "");
      continue;
    }
    EXPECT_TRUE(chat_template.ok()) << chat_template.error().message;
    if (!chat_template.ok()) continue;
    EXPECT_TRUE(rendered.ok()) << rendered.error().message;
    if (rendered.ok()) {
      EXPECT_EQ(*rendered, golden["text"]);
    }
  }
}

TEST(GenerationTags, GiveTheSpansOfTransformers) {
  std::ifstream file(kGolden + "own/generation.jinja");
  const std::string source{std::istreambuf_iterator<char>(file), {}};
  const ChatTemplate chat_template = ChatTemplate::create(source, "{}", {"<|im_end|>", "<|im_start|>"}).value();
  const Json goldens = read_json(kGolden + "generation.json");
  size_t turns = 0;
  for (size_t i = 0; i < goldens.size(); ++i) {
    const Json& conversation = cases()["conversations"][i];
    SCOPED_TRACE(conversation.dump());
    if (goldens[i].contains("error") || goldens[i]["spans"].empty()) continue;
    const auto found = chat_template.render_with_spans(messages_of(conversation), {});
    ASSERT_TRUE(found.ok()) << found.error().message;
    EXPECT_EQ(found->text, goldens[i]["text"]);
    EXPECT_EQ(found->assistant, spans_of(goldens[i]["spans"]));
    turns += found->assistant.size();
  }
  EXPECT_GT(turns, 300);
}

std::string name_of(const testing::TestParamInfo<std::string>& model) {
  return model.param;
}

INSTANTIATE_TEST_SUITE_P(Models, Golden,
                         testing::Values("own", "smollm2", "qwen3", "llama3_1", "gemma3", "deepseek_v3", "gptoss"),
                         name_of);
// gptoss is published without its template.
INSTANTIATE_TEST_SUITE_P(Models, GoldenTemplate,
                         testing::Values("own", "smollm2", "qwen3", "llama3_1", "gemma3", "deepseek_v3"), name_of);

}  // namespace
}  // namespace lathe::text
