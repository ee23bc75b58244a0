#include "config/sources.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

namespace lathe::config {
namespace {

// Two values of a setting that are neither its default nor each other: as a flag has them, and as a file has them.
struct Sample {
  std::string text, toml;
};

Sample sample(const Setting& setting, int which) {
  struct Make {
    const Setting& setting;
    int which;
    Sample operator()(std::string*) const {
      const std::string text = setting.choices.empty()
                                   ? "text-" + std::to_string(which)
                                   : setting.choices.at(static_cast<size_t>(which) % setting.choices.size());
      return {text, "\"" + text + "\""};
    }
    Sample operator()(int*) const { return number(); }
    Sample operator()(int64_t*) const { return number(); }
    Sample operator()(double*) const {
      const std::string text = which == 1 ? "0.25" : "0.5";
      return {text, text};
    }
    Sample operator()(bool* value) const {
      const std::string text = (*value != (which == 1)) ? "true" : "false";
      return {text, text};
    }
    Sample operator()(std::vector<std::string>*) const {
      const std::string item = "item-" + std::to_string(which);
      return {item + ",more", "[\"" + item + "\", \"more\"]"};
    }
    Sample number() const {
      const std::string text = std::to_string(static_cast<int64_t>(setting.lowest) + 2 + which);
      return {text, text};
    }
  };
  return std::visit(Make{setting, which}, setting.value);
}

// A command with all settings there are.
class SourcesTest : public testing::Test {
 protected:
  void SetUp() override {
    file_ = std::filesystem::temp_directory_path() / ("lathe-sources-" + std::to_string(::getpid()) + ".toml");
    for (const Setting& setting : table()) ::unsetenv(setting.variable().c_str());
    ::unsetenv("LATHE_CONFIG");
  }
  void TearDown() override {
    std::filesystem::remove(file_);
    for (const Setting& setting : table()) ::unsetenv(setting.variable().c_str());
  }

  std::vector<Setting> table() {
    std::vector<Setting> all = server_settings(settings_);
    for (Setting& setting : attach_settings(attach_)) all.push_back(setting);
    return all;
  }

  void write(const std::string& text) { std::ofstream(file_) << text; }

  // Parses and reads; the result stays in sources_.
  Status read(std::vector<std::string> words) {
    settings_ = {}, attach_ = {};
    app_ = std::make_unique<CLI::App>();
    sources_ = std::make_unique<Sources>(*app_, table());
    std::reverse(words.begin(), words.end());
    app_->parse(words);
    return sources_->read();
  }
  Status read_with_file(const std::string& text) {
    write(text);
    return read({"--config", file_});
  }

  const Sources::Entry& entry(const std::string& name) const {
    for (const Sources::Entry& one : sources_->entries()) {
      if (one.setting.name == name) return one;
    }
    throw std::runtime_error("no setting " + name);
  }

  std::string file_;
  Settings settings_;
  AttachSettings attach_;
  std::unique_ptr<CLI::App> app_;
  std::unique_ptr<Sources> sources_;
};

TEST_F(SourcesTest, NamesAreUnique) {
  std::set<std::string> names, variables;
  for (const Setting& setting : table()) {
    EXPECT_TRUE(names.insert(setting.name).second) << setting.name;
    EXPECT_TRUE(variables.insert(setting.variable()).second) << setting.variable();
  }
  // A setting that has no row is read by nobody. Whoever adds a member adds its row.
  EXPECT_EQ(names.size(), 31U);
}

TEST_F(SourcesTest, EverySettingComesFromEverySource) {
  for (const Setting& row : table()) {
    SCOPED_TRACE(row.name);
    ASSERT_TRUE(read({}).ok());
    const std::string standard = entry(row.name).setting.text();
    EXPECT_EQ(entry(row.name).origin.source, Source::kDefault);
    const bool boolean = std::holds_alternative<bool*>(row.value);
    const Sample one = sample(row, 1), two = sample(row, 2);
    ASSERT_NE(one.text, standard);

    const Status from_file = read_with_file("# first\n" + row.name + " = " + one.toml + "\n");
    ASSERT_TRUE(from_file.ok()) << from_file.error().message;
    EXPECT_EQ(entry(row.name).setting.text(), one.text);
    EXPECT_EQ(entry(row.name).origin.source, Source::kFile);
    EXPECT_EQ(entry(row.name).origin.where, file_ + ":2");

    ::setenv(row.variable().c_str(), two.text.c_str(), 1);
    const Status from_environment = read_with_file(row.name + " = " + one.toml + "\n");
    ASSERT_TRUE(from_environment.ok()) << from_environment.error().message;
    EXPECT_EQ(entry(row.name).setting.text(), two.text) << "the environment wins over the file";
    EXPECT_EQ(entry(row.name).origin.where, row.variable());

    std::vector<std::string> words = {"--config", file_, row.flag() + "=" + one.text};
    if (std::holds_alternative<std::vector<std::string>*>(row.value))
      words = {"--config", file_, row.flag(), "item-1", row.flag(), "more"};
    write(row.name + " = " + two.toml + "\n");
    const Status from_flag = read(words);
    ASSERT_TRUE(from_flag.ok()) << from_flag.error().message;
    EXPECT_EQ(entry(row.name).setting.text(), one.text) << "a flag wins over both";
    EXPECT_EQ(entry(row.name).origin.where, row.flag());
    ::unsetenv(row.variable().c_str());

    if (boolean && standard == "false") {
      ASSERT_TRUE(read({row.flag()}).ok());
      EXPECT_EQ(entry(row.name).setting.text(), "true") << "a flag alone";
    }
    ::setenv(row.variable().c_str(), "", 1);
    ASSERT_TRUE(read({}).ok());
    EXPECT_EQ(entry(row.name).setting.text(), standard) << "an empty variable is none";
    ::unsetenv(row.variable().c_str());
  }
}

TEST_F(SourcesTest, EverySettingRefusesWhatItCannotBe) {
  for (const Setting& row : table()) {
    SCOPED_TRACE(row.name);
    std::vector<std::string> wrong;
    const bool text = std::holds_alternative<std::string*>(row.value);
    if (std::holds_alternative<bool*>(row.value)) wrong = {"perhaps"};
    if (text && !row.choices.empty()) wrong = {"another"};
    if (!text && std::isfinite(row.lowest)) wrong = {"many", "", "1x", std::to_string(row.lowest - 1), "nan"};
    if (std::isfinite(row.highest)) wrong.push_back(std::to_string(static_cast<int64_t>(row.highest) + 1));
    const std::string before = row.text();
    for (const std::string& value : wrong) {
      const Status set = row.set(value);
      ASSERT_FALSE(set.ok()) << value;
      EXPECT_NE(set.error().message.find("must be"), std::string::npos);
      EXPECT_EQ(row.text(), before) << "nothing is half-changed";
      if (value.empty()) continue;
      ::setenv(row.variable().c_str(), value.c_str(), 1);
      const Status from_environment = read({});
      ASSERT_FALSE(from_environment.ok()) << value;
      EXPECT_TRUE(from_environment.error().message.starts_with(row.variable() + " must be"));
      ::unsetenv(row.variable().c_str());
      const Status from_flag = read({row.flag() + "=" + value});
      ASSERT_FALSE(from_flag.ok()) << value;
      EXPECT_TRUE(from_flag.error().message.starts_with(row.flag() + " must be"));
    }
    // A value of another kind.
    const bool quoted = text || std::holds_alternative<std::vector<std::string>*>(row.value);
    const Status from_file = read_with_file("\n" + row.name + (quoted ? " = 5\n" : " = \"5\"\n"));
    ASSERT_FALSE(from_file.ok());
    EXPECT_TRUE(from_file.error().message.starts_with(file_ + ":2: '" + row.name + "' ")) << from_file.error().message;
    EXPECT_NE(from_file.error().message.find("quotes"), std::string::npos) << from_file.error().message;
  }
}

TEST_F(SourcesTest, RefusesAFileThatIsNotWhatItSeems) {
  const Status missing = read({"--config", "/nowhere/lathe.toml"});
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, Code::kNotFound);
  EXPECT_NE(missing.error().message.find("/nowhere/lathe.toml"), std::string::npos);

  const struct {
    const char *text, *what;
  } cases[] = {
      {"port = 80\nprot = 81\n", ":2: there is no setting 'prot'; did you mean 'port'?"},
      {"max_running = 3\n", ":1: there is no setting 'max_running'; did you mean 'max-running'?"},
      {"something = 1\n", ":1: there is no setting 'something'"},
      {"\n[serve]\nport = 80\n", ":2: 'serve' is a section"},
      {"host = 127.0.0.1\n", ":1: "},
      {"port\n", ":1: "},
      {"port = 1\nport = 2\n", ":2: "},
      {"port = 1.5\n", ":1: 'port' must be an integer from 0 to 65535, not '1.5'"},
      {"port = [1]\n", ":1: 'port' must be"},
      {"allow-origin = [1]\n", ":1: 'allow-origin' must be a list of strings"},
      {"config = \"other.toml\"\n", ":1: there is no setting 'config'"},
  };
  for (const auto& c : cases) {
    const Status refused = read_with_file(c.text);
    ASSERT_FALSE(refused.ok()) << c.text;
    EXPECT_TRUE(refused.error().message.starts_with(file_ + c.what)) << refused.error().message;
  }
}

TEST_F(SourcesTest, SaysThatASettingIsOfAnotherCommand) {
  write("vllm = \"http://127.0.0.1:8000\"\n");
  CLI::App app;
  Sources serving(app, server_settings(settings_), {"vllm"});
  app.parse(std::vector<std::string>{file_, "--config"});
  const Status refused = serving.read();
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("'vllm' of this command"), std::string::npos) << refused.error().message;
}

TEST_F(SourcesTest, TheFileIsNamedInTheEnvironmentToo) {
  write("port = 1234\n");
  ::setenv("LATHE_CONFIG", file_.c_str(), 1);
  const Status done = read({});
  ::unsetenv("LATHE_CONFIG");
  ASSERT_TRUE(done.ok());
  EXPECT_EQ(settings_.port, 1234);
}

TEST_F(SourcesTest, WarnsOfAKeyThatOthersMayRead) {
  write("api-key = \"k\"\n");
  ::chmod(file_.c_str(), 0644);
  ASSERT_TRUE(read({"--config", file_}).ok());
  ASSERT_EQ(sources_->warnings().size(), 1U);
  EXPECT_NE(sources_->warnings()[0].find("chmod 600"), std::string::npos);
  ::chmod(file_.c_str(), 0600);
  ASSERT_TRUE(read({"--config", file_}).ok());
  EXPECT_TRUE(sources_->warnings().empty());
  write("port = 1\n");
  ::chmod(file_.c_str(), 0644);
  ASSERT_TRUE(read({"--config", file_}).ok());
  EXPECT_TRUE(sources_->warnings().empty());
}

}  // namespace
}  // namespace lathe::config
