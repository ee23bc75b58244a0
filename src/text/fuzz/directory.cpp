// Fuzz target: the JSON files that a directory's text is read from. The first byte says which of them holds the rest of
// the input; the others are those of a whole directory. Whatever the bytes are, they are refused by a message, or the
// directory can be asked for a prompt and graded tokens.
#include <string>
#include <string_view>

#include "io/fault_env.h"
#include "text/text.h"

namespace {

using namespace lathe;

constexpr const char* kFiles[] = {"tokenizer_config.json", "special_tokens_map.json", "tokenizer.json",
                                  "added_tokens.json",     "generation_config.json",  "config.json"};
constexpr const char* kOwn = LATHE_SOURCE_DIR "/tests/golden/text/own/";

const std::string& own(const char* name) {
  static const std::string tokenizer = io::read_text(io::posix_env(), std::string(kOwn) + "tokenizer.json").value();
  static const std::string config =
      R"({"bos_token":null,"eos_token":"<|im_end|>","chat_template":"{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"})";
  return std::string_view(name) == "tokenizer.json" ? tokenizer : config;
}

void put(io::Env& env, const std::string& name, std::string_view contents) {
  const auto file = env.create("/model/" + name);
  LATHE_CHECK(file.ok() && (*file)->append(std::as_bytes(std::span(contents))).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (size == 0) return 0;
  const std::string chosen = kFiles[bytes[0] % std::size(kFiles)];
  io::FaultEnv env;
  LATHE_CHECK(env.create_directories("/model").ok());
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) put(env, name, own(name));
  put(env, chosen, {reinterpret_cast<const char*>(bytes) + 1, size - 1});
  const auto text = text::Text::load(env, "/model");
  if (!text.ok()) {
    LATHE_CHECK(!text.error().message.empty());
    return 0;
  }
  const std::vector<text::Message> turns = {{.role = "user", .content = "hello"},
                                            {.role = "assistant", .content = "good day"}};
  const auto prompt = text->prompt(std::span(turns).first(1), {});
  LATHE_CHECK(prompt.ok() || !prompt.error().message.empty());
  const float weight = 1;
  const auto graded = text->graded(turns, {&weight, 1}, {.add_generation_prompt = false});
  LATHE_CHECK(graded.ok() ? graded->ids.size() == graded->weights.size() : !graded.error().message.empty());
  return 0;
}
