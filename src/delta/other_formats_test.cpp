#include "delta/other_formats.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "delta/test_dir.h"

namespace lathe::delta {
namespace {

namespace fs = std::filesystem;

// What check_model_files() says of a directory with these files, each empty.
std::string said_of(const std::vector<std::string>& files) {
  const TestDir dir;
  for (const std::string& file : files) {
    fs::create_directories((fs::path(dir.path()) / file).parent_path());
    dir.write(file, "");
  }
  const Status checked = check_model_files(io::posix_env(), dir.path());
  // Whoever opens the weights alone is told the same.
  const auto opened = ModelDir::open(io::posix_env(), dir.path());
  if (checked.ok()) return "a model";
  const std::string& said = checked.error().message;
  const bool has_weights = *io::posix_env().exists(dir.path() + "/model.safetensors");
  if (!has_weights) {
    EXPECT_EQ(opened.error().message, said);
  }
  return said;
}

struct Case {
  std::vector<std::string> files;
  std::vector<std::string> words;
};

TEST(OtherFormats, AreNamedWithTheRemedy) {
  const std::vector<Case> cases = {
      {{"config.json", "model.safetensors"}, {"a model"}},
      {{"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"}, {"a model"}},
      {{"model.safetensors"}, {"has no config.json"}},
      {{"adapter_config.json", "adapter_model.safetensors"}, {"LoRA adapter", "merge_and_unload"}},
      {{"adapter_config.json", "adapter_model.bin"}, {"LoRA adapter", "merge_and_unload"}},
      {{"adapter_config.json", "model.safetensors"}, {"LoRA adapter", "merge_and_unload"}},
      {{"config.json", "pytorch_model.bin"},
       {"pytorch_model.bin", "pickled", "AutoModelForCausalLM", "save_pretrained"}},
      {{"config.json", "pytorch_model-00001-of-00002.bin"}, {"pickled", "save_pretrained"}},
      {{"consolidated.00.pth", "params.json"}, {"maker's own format", "model*.safetensors"}},
      {{"config.json", "consolidated.safetensors"}, {"maker's own format"}},
      {{"config.json", "model-00001-of-00002.safetensors"}, {"model-00001-of-00002.safetensors", "index is missing"}},
      {{"config.json", "flax_model.msgpack"}, {"another framework"}},
      {{"config.json", "global_step10/x"}, {"zero_to_fp32.py"}},
      {{"config.json", "weights.safetensors"}, {"is named model.safetensors"}},
      {{"snapshots/0123/model.safetensors"}, {"Hugging Face cache", "/snapshots"}},
      {{"checkpoint-500/model.safetensors"}, {"did you mean", "/checkpoint-500"}},
      {{"notes.txt"}, {"is it a Hugging Face model directory?"}},
  };
  for (const Case& one : cases) {
    const std::string said = said_of(one.files);
    for (const std::string& word : one.words)
      EXPECT_NE(said.find(word), std::string::npos) << one.files[0] << ": " << said;
  }
}

TEST(OtherFormats, OfASingleFile) {
  const TestDir dir;
  dir.write("q8.gguf", "GGUF" + std::string(100, 0));
  dir.write("model.safetensors", std::string(100, 0));
  const auto said = [&](const std::string& path) { return check_model_files(io::posix_env(), path).error().message; };
  EXPECT_NE(said(dir.path() + "/q8.gguf").find("is a GGUF file"), std::string::npos);
  EXPECT_NE(said(dir.path() + "/q8.gguf").find("gguf_file='q8.gguf'"), std::string::npos);
  EXPECT_NE(said(dir.path() + "/model.safetensors").find("is a file; name the model directory"), std::string::npos);
  EXPECT_NE(said(dir.path() + "/nowhere").find("there is no model directory"), std::string::npos);
}

TEST(OtherFormats, OfTokenizers) {
  const TestDir dir;
  EXPECT_NE(no_tokenizer(io::posix_env(), dir.path()).message.find("has no tokenizer.json; download"),
            std::string::npos);
  dir.write("tokenizer.model", "x");
  const std::string said = no_tokenizer(io::posix_env(), dir.path()).message;
  EXPECT_NE(said.find("only tokenizer.model"), std::string::npos) << said;
  EXPECT_NE(said.find("save_pretrained"), std::string::npos) << said;
}

TEST(LfsPointers, AreNamedWhereverAFileIsRead) {
  const TestDir dir;
  const std::string pointer =
      "version https://git-lfs.github.com/spec/v1\noid sha256:" + std::string(64, 'a') + "\nsize 9\n";
  for (const char* file : {"model.safetensors", "config.json"}) dir.write(file, pointer);
  const auto opened = ModelDir::open(io::posix_env(), dir.path());
  ASSERT_FALSE(opened.ok());
  EXPECT_NE(opened.error().message.find("model.safetensors: it is a Git LFS pointer"), std::string::npos)
      << opened.error().message;
  EXPECT_NE(opened.error().message.find("git lfs pull"), std::string::npos);
  const auto text = io::read_text(io::posix_env(), dir.path() + "/config.json");
  ASSERT_FALSE(text.ok());
  EXPECT_NE(text.error().message.find("config.json: it is a Git LFS pointer"), std::string::npos);
}

}  // namespace
}  // namespace lathe::delta
