#include "api/training_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "io/env.h"

namespace lathe::api {
namespace {

const text::Text& own_text() {
  static const text::Text text = text::Text::load(io::posix_env(), LATHE_SOURCE_DIR "/tests/golden/text/own").value();
  return text;
}

class File {
 public:
  explicit File(const std::string& content)
      : path_(std::filesystem::temp_directory_path() / ("lathe-training-" + std::to_string(::getpid()) + ".jsonl")) {
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~File() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }
  Result<TrainingFile> read(TrainingFormat format, int64_t max_positions = 256) const {
    return read_training_file(path(), format, own_text(), 100'000, max_positions);
  }
  std::string refusal(TrainingFormat format, int64_t max_positions = 256) const {
    const auto result = read(format, max_positions);
    return result.ok() ? "accepted" : result.error().message.substr(path().size());
  }

 private:
  std::filesystem::path path_;
};

constexpr auto kConversations = TrainingFormat::kConversations;
constexpr auto kPreferences = TrainingFormat::kPreferences;

const std::string kTurns =
    R"({"messages":[{"role":"user","content":"hello"},{"role":"assistant","content":"good day"}]})";
const std::string kPair =
    R"({"input":{"messages":[{"role":"user","content":"hello"},{"role":"assistant","content":"good day"},)"
    R"({"role":"user","content":"how are you"}],"tools":[]},)"
    R"("preferred_output":[{"role":"assistant","content":"well"}],)"
    R"("non_preferred_output":[{"role":"assistant","content":"leave me alone"}]})";

std::vector<text::TokenId> graded(const data::Example& example) {
  std::vector<text::TokenId> ids;
  for (size_t t = 0; t < example.tokens.size(); ++t) {
    if (example.weights[t] > 0) ids.push_back(example.tokens[t]);
  }
  return ids;
}

TEST(TrainingFile, ReadsConversationsAndSkipsEmptyLines) {
  const auto file = File(kTurns + "\r\n\n  \n" + kTurns).read(kConversations);
  ASSERT_TRUE(file.ok()) << file.error().message;
  ASSERT_EQ(file->examples.size(), 2U);
  EXPECT_EQ(file->examples[0].tokens, file->examples[1].tokens);
}

TEST(TrainingFile, OfAPairOnlyTheTwoAnswersAreGraded) {
  const auto file = File(kPair).read(kPreferences);
  ASSERT_TRUE(file.ok()) << file.error().message;
  ASSERT_EQ(file->examples.size(), 2U);
  const auto text_of = [](const data::Example& example) {
    const auto ids = graded(example);
    return own_text().tokenizer().decode(ids, /*skip_special=*/true).value();
  };
  EXPECT_EQ(text_of(file->examples[0]), "well");
  EXPECT_EQ(text_of(file->examples[1]), "leave me alone");
  size_t shared = 0;
  while (file->examples[0].tokens[shared] == file->examples[1].tokens[shared]) ++shared;
  EXPECT_EQ(file->examples[0].weights[shared], 1) << "the answers part where they begin";
}

TEST(TrainingFile, TheHashIsThatOfTheContent) {
  EXPECT_EQ(File(kTurns).read(kConversations)->hash, File(kTurns + "\n").read(kConversations)->hash);
  EXPECT_NE(File(kTurns).read(kConversations)->hash, File(kTurns + "\n" + kTurns).read(kConversations)->hash);
  EXPECT_NE(File(kTurns).read(kConversations)->hash, File(" " + kTurns).read(kConversations)->hash);
}

struct Bad {
  TrainingFormat format;
  std::string content, named;
};

TEST(TrainingFile, NamesTheLineAndWhatIsWrong) {
  const std::string zero =
      R"({"messages":[{"role":"user","content":"hello"},{"role":"assistant","content":"x","weight":0}]})";
  const auto pair = [](const std::string& messages, const std::string& preferred, const std::string& other) {
    return R"({"input":{"messages":)" + messages + R"(},"preferred_output":)" + preferred +
           R"(,"non_preferred_output":)" + other + "}";
  };
  const std::string user = R"([{"role":"user","content":"hello"}])",
                    good = R"([{"role":"assistant","content":"well"}])";
  const Bad cases[] = {
      {kConversations, kTurns + "\n\n{\n", ":3: the line is not valid JSON"},
      {kConversations, "[1]", ":1: the line must be a JSON object"},
      {kConversations, kTurns + "\n" + zero, ":2: no token of the conversation is graded"},
      {kConversations, R"({"messages":[{"role":"user","content":"hello"}]})", ":1: the conversation has no assistant"},
      {kConversations, R"({"messages":[]})", ":1: 'messages'"},
      {kConversations, kPair, ":1: 'messages' is missing"},
      {kConversations, "\n \n", " has no examples"},
      {kPreferences, kPair + "\n" + kTurns, ":2: 'input' is missing"},
      {kPreferences, pair("[]", good, good), ":1: 'input.messages' must be a list"},
      {kPreferences, pair(R"([{"role":"user"}])", good, good), ":1: 'input.messages[0].content' is missing"},
      {kPreferences, pair(user, "[]", good), ":1: 'preferred_output' must be a list"},
      {kPreferences, pair(user, good, user), ":1: 'non_preferred_output' may hold assistant messages only"},
      {kPreferences, pair(user, good, good), ":1: 'preferred_output' and 'non_preferred_output' are the same"},
      {kPreferences, pair(user, good, R"([{"role":"assistant"}])"), ":1: 'non_preferred_output[0].content' is missing"},
  };
  for (const Bad& bad : cases) {
    const std::string message = File(bad.content).refusal(bad.format);
    EXPECT_EQ(message.substr(0, bad.named.size()), bad.named) << message;
  }
  EXPECT_NE(File(kTurns).refusal(kConversations, 4).find(":1: the conversation has"), std::string::npos);
  EXPECT_NE(File(kPair).refusal(kPreferences, 4).find(":1: preferred_output: the conversation has"), std::string::npos);
  EXPECT_EQ(read_training_file("/nowhere.jsonl", kConversations, own_text(), 10, 10).error().code, Code::kNotFound);
}

}  // namespace
}  // namespace lathe::api
