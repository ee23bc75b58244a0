// With real tokenizers and templates, and ours as the judge: golden_test.cpp.
#include "text/foreign_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

namespace lathe::text {
namespace {

constexpr std::array<std::string_view, 3> kSpecial = {"<|user|>", "<|assistant|>", "</s>"};

Message user(std::string content) {
  return {.role = "user", .content = std::move(content)};
}
Message assistant(std::string content) {
  return {.role = "assistant", .content = std::move(content)};
}

bool is_special(TokenId id) {
  return id >= 256;
}

// One token per byte, or per special token.
std::vector<TokenId> tokens_of(std::string_view text) {
  std::vector<TokenId> ids;
  while (!text.empty()) {
    const auto special =
        std::find_if(kSpecial.begin(), kSpecial.end(), [&](std::string_view s) { return text.starts_with(s); });
    ids.push_back(special == kSpecial.end() ? static_cast<unsigned char>(text.front())
                                            : 256 + static_cast<TokenId>(special - kSpecial.begin()));
    text.remove_prefix(special == kSpecial.end() ? 1 : special->size());
  }
  return ids;
}

// Each message between its role and `end`.
TokenizeMessages rendering(const std::string& end) {
  return [end](std::span<const Message> messages) -> Result<std::vector<TokenId>> {
    std::string text;
    for (const Message& message : messages) text += "<|" + message.role + "|>" + message.content + end;
    return tokens_of(text);
  };
}

// The graded tokens as text, one string per run; or what was refused.
std::string graded(const std::vector<Message>& messages, const std::vector<float>& weights,
                   const TokenizeMessages& tokenize) {
  const auto result = graded_elsewhere(messages, weights, tokenize, is_special);
  if (!result.ok()) return result.error().message;
  std::string text;
  for (size_t t = 0; t < result->ids.size(); ++t) {
    if (result->weights[t] == 0) {
      if (!text.empty() && !text.ends_with('|')) text += '|';
      continue;
    }
    if (is_special(result->ids[t])) {
      text += kSpecial[static_cast<size_t>(result->ids[t] - 256)];
    } else {
      text += static_cast<char>(result->ids[t]);
    }
  }
  return text;
}

const std::vector<Message> kTwoTurns = {user("q"), assistant("one"), user("q"), assistant("two")};

TEST(GradedElsewhere, AreTheChosenTurnsWithTheirEnds) {
  EXPECT_EQ(graded(kTwoTurns, {1, 1}, rendering("</s>\n")), "one</s>|two</s>|");
  EXPECT_EQ(graded(kTwoTurns, {0, 1}, rendering("</s>\n")), "two</s>|");
  EXPECT_EQ(graded({user("q"), assistant("")}, {1}, rendering("</s>")), "</s>");
}

TEST(GradedElsewhere, DoNotTakeInWhatOpensTheNext) {
  EXPECT_EQ(graded(kTwoTurns, {1, 1}, rendering("")), "one|two");
}

TEST(GradedElsewhere, AreWholeEvenIfTheyResembleANonce) {
  for (const std::string said : {"\uFDD0x\uFDD1", "\U000F0000x\U000F0000"})
    EXPECT_EQ(graded({user("q"), assistant(said)}, {1}, rendering("</s>")), said + "</s>");
}

TEST(GradedElsewhere, AreRefusedByName) {
  const TokenizeMessages forgetful = [](std::span<const Message>) -> Result<std::vector<TokenId>> {
    return tokens_of("the same");
  };
  EXPECT_NE(graded(kTwoTurns, {0, 1}, forgetful).find("where message 3 is (it is left out)"), std::string::npos);
  const TokenizeMessages strict = [](std::span<const Message> messages) -> Result<std::vector<TokenId>> {
    if (messages.back().content != "two") return invalid_argument("no tool was called");
    return rendering("</s>")(messages);
  };
  const std::string refused = graded(kTwoTurns, {0, 1}, strict);
  EXPECT_NE(refused.find("no tool was called"), std::string::npos);
  EXPECT_NE(refused.find("--tokens=ours"), std::string::npos);
  const TokenizeMessages reversed = [](std::span<const Message> messages) -> Result<std::vector<TokenId>> {
    const std::vector<Message> backwards(messages.rbegin(), messages.rend());
    return rendering("</s>")(backwards);
  };
  EXPECT_NE(graded(kTwoTurns, {1, 1}, reversed).find("message 3 is (it is mixed with others)"), std::string::npos);
  EXPECT_NE(graded(kTwoTurns, {0, 0}, rendering("</s>")).find("no token of the conversation is graded"),
            std::string::npos);
  EXPECT_NE(graded({user("q")}, {}, rendering("</s>")).find("no assistant turn"), std::string::npos);
}

}  // namespace
}  // namespace lathe::text
