// Weights in the memory of another: fused tensors laid out as vLLM lays them out, imported by a manifest, are the
// checkpoint's, part by part; and writing a part writes that memory.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "delta/model_dir.h"
#include "io/env.h"
#include "model/model.h"
#include "model/test_golden.h"
#include "vllm/import.h"
#include "vllm/names.h"

namespace lathe::vllm {
namespace {

using model::load_model;
using model::Model;
using model::ModelConfig;
using model::read_config;

// What an engine would hold of a golden model, and say of it.
struct Engine {
  Manifest manifest;
  std::vector<std::byte> memory;
  ModelConfig config;
  std::vector<weights::ParameterSpec> specs;

  // `prefix`: how the engine calls the text model; `padding`: rows it adds to vocabularies.
  explicit Engine(const std::string& golden, const std::string& prefix = "model.", int64_t padding = 0)
      : directory(std::string(LATHE_SOURCE_DIR) + "/tests/golden/" + golden) {
    config = read_config(io::posix_env(), directory).value();
    specs = Model::parameter_specs(config);
    const auto dir = delta::ModelDir::open(io::posix_env(), directory).value();
    manifest.memories.resize(1);
    for (const weights::ParameterSpec& spec : specs) add(dir, spec, prefix, padding);
    manifest.memories[0].bytes = memory.size();
    sort();
  }

  void sort() {
    std::sort(manifest.tensors.begin(), manifest.tensors.end(),
              [](const auto& a, const auto& b) { return a.name < b.name; });
  }

  ServedTensor& tensor(const std::string& name) { return *const_cast<ServedTensor*>(manifest.find(name)); }

  Result<weights::WeightStore> import() {
    const MappedMemory mapped{memory.data(), nullptr};
    return import_weights(manifest, {&mapped, 1}, at::kCPU, specs, config.prefix);
  }

  std::string directory;

 private:
  void add(const delta::ModelDir& dir, const weights::ParameterSpec& spec, const std::string& prefix, int64_t padding) {
    ServedTensor tensor{.name = spec.name, .offset = (memory.size() + 255) / 256 * 256};
    if (spec.name.starts_with(config.prefix)) {
      tensor.name = prefix + spec.name.substr(config.prefix.size());
    } else if (prefix == "language_model.model.") {
      tensor.name = "language_model." + spec.name;
    }
    const delta::TensorInfo& first = *dir.find(spec.parts.front().name);
    tensor.dtype = first.dtype;
    tensor.shape = first.shape;
    tensor.shape[0] = 0;
    memory.resize(tensor.offset);
    // The parts in the order of the tables by which vLLM's names are read.
    for (const std::string& part : parts_of(spec.name)) {
      const delta::TensorInfo& info = *dir.find(part);
      tensor.shape[0] += info.shape[0];
      memory.resize(memory.size() + info.size());
      ASSERT_TRUE(dir.read(part, {memory.data() + memory.size() - info.size(), info.size()}).ok());
    }
    if (spec.vocabulary) {
      tensor.shape[0] += padding;
      memory.resize(memory.size() + static_cast<size_t>(padding * tensor.shape[1] * delta::dtype_size(tensor.dtype)));
    }
    tensor.bytes = memory.size() - tensor.offset;
    manifest.tensors.push_back(std::move(tensor));
  }
};

std::vector<std::string> differing(Engine& engine, const weights::WeightStore& store) {
  const auto dir = delta::ModelDir::open(io::posix_env(), engine.directory).value();
  return differing_parts(store, dir).value();
}

class Import : public ::testing::TestWithParam<const char*> {};

TEST_P(Import, EveryPartIsTheCheckpoints) {
  Engine engine(GetParam());
  const auto store = engine.import();
  ASSERT_TRUE(store.ok()) << store.error().message;
  EXPECT_EQ(differing(engine, *store), std::vector<std::string>());
  const auto own = load_model(io::posix_env(), engine.directory);
  ASSERT_TRUE(own.ok());
  EXPECT_EQ(store->part_count(), own->store->part_count());
  EXPECT_EQ(store->byte_count(), own->store->byte_count());
}

TEST_P(Import, WritingAPartWritesTheEnginesMemory) {
  Engine engine(GetParam());
  const auto store = engine.import();
  ASSERT_TRUE(store.ok());
  for (const auto& parameter : store->parameters()) {
    const ServedTensor* tensor = engine.manifest.find(parameter.name);
    ASSERT_NE(tensor, nullptr);
    size_t offset = tensor->offset;
    for (const auto& part : parameter.parts) {
      part.data.fill_(1.5);
      const auto* value = engine.memory.data() + offset;
      EXPECT_EQ(part.data.const_data_ptr(), value) << part.name;
      offset += part.data.nbytes();
    }
    EXPECT_EQ(offset, tensor->offset + tensor->bytes);
  }
  EXPECT_EQ(static_cast<int64_t>(differing(engine, *store).size()), store->part_count());
}

INSTANTIATE_TEST_SUITE_P(All, Import, ::testing::ValuesIn(model::kGoldenFamilies),
                         [](const auto& kind) { return std::string(kind.param); });

TEST(ImportNames, AWrappersTextModel) {
  Engine engine("qwen3_5", "language_model.model.");
  engine.manifest.tensors.push_back({.name = "visual.patch_embed.proj.bias", .shape = {1}, .bytes = 2});
  engine.sort();
  const auto store = engine.import();
  ASSERT_TRUE(store.ok()) << store.error().message;
  EXPECT_EQ(differing(engine, *store), std::vector<std::string>());
}

TEST(ImportShapes, APaddedVocabularyIsCut) {
  Engine engine("qwen3", "model.", 57);
  const auto store = engine.import();
  ASSERT_TRUE(store.ok()) << store.error().message;
  EXPECT_EQ(differing(engine, *store), std::vector<std::string>());
}

std::string refusal(Engine& engine) {
  const auto store = engine.import();
  return store.ok() ? "" : store.error().message;
}

TEST(ImportRefuses, AMissingTensor) {
  Engine engine("llama");
  engine.manifest.tensors.erase(engine.manifest.tensors.begin());
  EXPECT_NE(refusal(engine).find("vLLM serves no tensor"), std::string::npos);
}

TEST(ImportRefuses, ATensorTooMany) {
  Engine engine("llama");
  engine.manifest.tensors.push_back({.name = "model.layers.0.self_attn.new_norm.weight", .shape = {1}, .bytes = 2});
  engine.sort();
  EXPECT_NE(refusal(engine).find("new_norm"), std::string::npos);
}

TEST(ImportRefuses, AnotherShape) {
  Engine engine("llama");
  auto& shape = engine.tensor("model.layers.0.self_attn.qkv_proj.weight").shape;
  shape[0] /= 2;
  EXPECT_NE(refusal(engine).find("qkv_proj.weight in shape"), std::string::npos);
}

TEST(ImportRefuses, AnotherDtype) {
  Engine engine("llama");
  engine.tensor("model.norm.weight").dtype = delta::Dtype::kF16;
  EXPECT_NE(refusal(engine).find("--dtype bfloat16"), std::string::npos);
}

// Ties are recognised by place, whatever the configuration says.
TEST(ImportRefuses, AHeadThatIsTiedOnOneSideOnly) {
  bool tied_seen = false, untied_seen = false;
  for (const char* golden : model::kGoldenFamilies) {
    Engine engine(golden);
    ServedTensor head = engine.tensor("model.embed_tokens.weight");
    if (engine.config.tie_embeddings) {
      tied_seen = true;
      head.name = "lm_head.weight";
      engine.manifest.tensors.push_back(head);
      engine.sort();
      EXPECT_EQ(refusal(engine), "") << golden;
      engine.tensor("lm_head.weight").offset += 256;
    } else {
      untied_seen = true;
      engine.tensor("lm_head.weight").offset = head.offset;
    }
    EXPECT_NE(refusal(engine).find("tie_word_embeddings"), std::string::npos) << golden;
  }
  EXPECT_TRUE(tied_seen && untied_seen);
}

}  // namespace
}  // namespace lathe::vllm
