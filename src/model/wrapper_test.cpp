// A qwen3_5 checkpoint as it is released: the text model inside a wrapper with vision and multi-token-prediction
// tensors.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "delta/model_dir.h"
#include "delta/test_dir.h"
#include "io/env.h"
#include "model/model.h"

namespace lathe::model {
namespace {

constexpr const char* kFlat = LATHE_SOURCE_DIR "/tests/golden/qwen3_5";

// The golden model's tensors under the wrapper's names, and others that the text model knows nothing of.
void write_wrapped(const delta::TestDir& to) {
  io::Env& env = io::posix_env();
  const nlohmann::json config = nlohmann::json::parse(io::read_text(env, std::string(kFlat) + "/config.json").value());
  const nlohmann::json wrapper = {
      {"model_type", "qwen3_5"}, {"text_config", config}, {"vision_config", {{"depth", 1}}}};
  const auto dir = delta::ModelDir::open(env, kFlat).value();
  std::vector<delta::TensorInfo> infos;
  std::string data;
  for (const delta::Shard& shard : dir.shards()) {
    for (delta::TensorInfo info : shard.header.tensors) {
      const size_t begin = data.size();
      data.resize(begin + info.size());
      ASSERT_TRUE(dir.read(info.name, std::as_writable_bytes(std::span(data).subspan(begin))).ok());
      if (info.name.starts_with("model.")) info.name = "model.language_model." + info.name.substr(6);
      infos.push_back(info);
    }
  }
  for (const char* name : {"model.visual.patch_embed.proj.bias", "mtp.fc.weight"}) {
    infos.push_back({.name = name, .dtype = delta::Dtype::kBF16, .shape = {2, 3}});
    data += "twelve bytes";
  }
  to.write("model.safetensors", delta::format_header(infos, {}) + data);
  to.write("config.json", wrapper.dump());
}

at::Tensor logits_of(const Model& model) {
  const at::Tensor ids = at::arange(3, 43, at::kLong);
  SequenceState state = model.new_state(ids.size(0));
  const SequenceRows run{.begin = 0, .count = ids.size(0), .position = 0, .state = &state};
  return model.logits(model.forward(ids, {&run, 1}));
}

TEST(Wrapper, HoldsTheSameModelAndKeepsWhatIsNotText) {
  const delta::TestDir dir;
  write_wrapped(dir);
  const auto wrapped = load_model(io::posix_env(), dir.path());
  ASSERT_TRUE(wrapped.ok()) << wrapped.error().message;
  const auto flat = load_model(io::posix_env(), kFlat);
  ASSERT_TRUE(flat.ok());
  EXPECT_TRUE(at::equal(logits_of(*wrapped->model), logits_of(*flat->model)));
  EXPECT_NE(wrapped->store->find_part("model.language_model.layers.0.linear_attn.A_log"), nullptr);
  // Not live, so a sync leaves them as they are.
  EXPECT_EQ(wrapped->store->find_part("model.visual.patch_embed.proj.bias"), nullptr);
  EXPECT_EQ(wrapped->store->find_part("mtp.fc.weight"), nullptr);
}

}  // namespace
}  // namespace lathe::model
