#include "vllm/manifest.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>

#include "vllm/names.h"
#include "vllm/shared_memory.h"

namespace lathe::vllm {
namespace {

using Json = nlohmann::json;

Json seed(const char* name) {
  std::ifstream file(std::string(LATHE_SOURCE_DIR) + "/src/vllm/fuzz/seeds/manifest/" + name);
  return Json::parse(file);
}

TEST(Manifest, Read) {
  const auto manifest = Manifest::parse(seed("shared.json").dump());
  ASSERT_TRUE(manifest.ok()) << manifest.error().message;
  EXPECT_EQ(manifest->engine_version, "0.32.0");
  EXPECT_EQ(manifest->pid, 7);
  ASSERT_EQ(manifest->memories.size(), 1u);
  EXPECT_EQ(manifest->memories[0].path, "/proc/7/fd/5");
  const ServedTensor* norm = manifest->find("model.norm.weight");
  ASSERT_NE(norm, nullptr);
  EXPECT_EQ(norm->bytes, 32u);
  EXPECT_EQ(norm->offset, 4096u);
  EXPECT_EQ(manifest->find("lm_head.weight")->offset, manifest->find("model.embed_tokens.weight")->offset);
  EXPECT_EQ(manifest->find("model.norm"), nullptr);
  EXPECT_TRUE(check_refusals(*manifest).ok());
}

TEST(Manifest, ReadsHandlesAndRefusals) {
  const auto manifest = Manifest::parse(seed("cuda.json").dump());
  ASSERT_TRUE(manifest.ok()) << manifest.error().message;
  EXPECT_EQ(manifest->memories[0].handle[63], std::byte{0xab});
  const Status refused = check_refusals(*manifest);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("LoRA (--enable-lora): start without"), std::string::npos);
}

// Lies, each told by changing one thing in a manifest that is true.
struct Lie {
  const char* name;
  std::function<void(Json&)> tell;
  const char* told;  // in the message
};

void PrintTo(const Lie& lie, std::ostream* out) {
  *out << lie.name;
}

class ManifestLies : public ::testing::TestWithParam<Lie> {};

TEST_P(ManifestLies, AreRefused) {
  Json json = seed("shared.json");
  ASSERT_TRUE(Manifest::parse(json.dump()).ok());
  GetParam().tell(json);
  const auto manifest = Manifest::parse(json.dump());
  ASSERT_FALSE(manifest.ok());
  EXPECT_NE(manifest.error().message.find(GetParam().told), std::string::npos) << manifest.error().message;
}

INSTANTIATE_TEST_SUITE_P(
    All, ManifestLies,
    ::testing::Values(Lie{"Format", [](Json& j) { j["format"] = "lathe manifest 2"; }, "format 'lathe manifest 2'"},
                      Lie{"NoPid", [](Json& j) { j.erase("pid"); }, "no 'pid'"},
                      Lie{"PidOfAnother", [](Json& j) { j["pid"] = 8; }, "not a descriptor of process 8"},
                      Lie{"AnyFile", [](Json& j) { j["memories"][0]["path"] = "/proc/7/fd/../../../etc/passwd"; },
                          "not a descriptor"},
                      Lie{"Kind", [](Json& j) { j["memories"][0]["kind"] = "tape"; }, "kind 'tape'"},
                      Lie{"MemoryTwice", [](Json& j) { j["memories"].push_back(j["memories"][0]); }, "listed twice"},
                      Lie{"NoRoom", [](Json& j) { j["memories"][0]["bytes"] = 0; }, "impossible size"},
                      Lie{"BehindTheEnd", [](Json& j) { j["tensors"][2]["offset"] = 8164; }, "ends past its memory"},
                      Lie{"OffsetWraps", [](Json& j) { j["tensors"][2]["offset"] = 18446744073709551612U; },
                          "ends past its memory"},
                      Lie{"InsideAnElement", [](Json& j) { j["tensors"][2]["offset"] = 4098; }, "inside an element"},
                      Lie{"NegativeOffset", [](Json& j) { j["tensors"][2]["offset"] = -4; }, "not a whole number"},
                      Lie{"Overlap", [](Json& j) { j["tensors"][2]["offset"] = 252; }, "overlap"},
                      Lie{"TiedWithAnotherShape",
                          [](Json& j) {
                            j["tensors"][1]["shape"] = {8, 16};
                          },
                          "overlap"},
                      Lie{"ShapeOverflows",
                          [](Json& j) {
                            j["tensors"][2]["shape"] = {4294967296, 4294967296};
                          },
                          "impossible shape"},
                      Lie{"ShapeOfNothing", [](Json& j) { j["tensors"][2]["shape"] = {0}; }, "impossible shape"},
                      Lie{"UnknownMemory", [](Json& j) { j["tensors"][2]["memory"] = 1; }, "which is not listed"},
                      Lie{"UnknownDtype", [](Json& j) { j["tensors"][2]["dtype"] = "F8_E4M3"; }, "served as F8_E4M3"},
                      Lie{"NameTwice", [](Json& j) { j["tensors"][1]["name"] = "model.norm.weight"; }, "listed twice"}),
    [](const auto& lie) { return lie.param.name; });

TEST(Manifest, ShortHandleIsRefused) {
  Json json = seed("cuda.json");
  json["memories"][0]["handle"] = std::string(126, 'a');
  EXPECT_FALSE(Manifest::parse(json.dump()).ok());
  json["memories"][0]["handle"] = std::string(126, 'a') + "0x";
  EXPECT_FALSE(Manifest::parse(json.dump()).ok());
}

TEST(Manifest, SeveralRanksAreRefused) {
  Json json = seed("shared.json");
  json["tensor_parallel"]["size"] = 2;
  const auto manifest = Manifest::parse(json.dump());
  ASSERT_TRUE(manifest.ok());
  const Status refused = check_refusals(*manifest);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("--tensor-parallel-size 1"), std::string::npos);
}

TEST(Names, EngineToCheckpoint) {
  EXPECT_EQ(checkpoint_name("model.layers.3.mlp.down_proj.weight", "model."), "model.layers.3.mlp.down_proj.weight");
  EXPECT_EQ(checkpoint_name("lm_head.weight", "model."), "lm_head.weight");
  const std::string wrapped = "model.language_model.";
  EXPECT_EQ(checkpoint_name("language_model.model.norm.weight", wrapped), "model.language_model.norm.weight");
  EXPECT_EQ(checkpoint_name("model.norm.weight", wrapped), "model.language_model.norm.weight");
  EXPECT_EQ(checkpoint_name("language_model.lm_head.weight", wrapped), "lm_head.weight");
  EXPECT_EQ(checkpoint_name("visual.blocks.0.attn.qkv.weight", wrapped), std::nullopt);
}

TEST(Names, Parts) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(parts_of("model.layers.0.self_attn.qkv_proj.bias"),
            (Names{"model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.k_proj.bias",
                   "model.layers.0.self_attn.v_proj.bias"}));
  EXPECT_EQ(parts_of("model.layers.0.linear_attn.in_proj_ba.weight"),
            (Names{"model.layers.0.linear_attn.in_proj_b.weight", "model.layers.0.linear_attn.in_proj_a.weight"}));
  EXPECT_EQ(parts_of("model.norm.weight"), Names{"model.norm.weight"});
  EXPECT_EQ(parts_of("x"), Names{"x"});
  EXPECT_EQ(parts_of(".x"), Names{".x"});
}

class SharedMemoryTest : public ::testing::Test {
 protected:
  // A file as the plugin makes it; with `seals` of one's choice.
  Memory make(int seals) {
    fd_ = ::memfd_create("weights", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    EXPECT_EQ(::ftruncate(fd_, 8192), 0);
    EXPECT_EQ(::fcntl(fd_, F_ADD_SEALS, seals), 0);
    return {.bytes = 8192, .path = "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(fd_)};
  }
  ~SharedMemoryTest() override { ::close(fd_); }
  int fd_ = -1;
};

TEST_F(SharedMemoryTest, IsTheSameMemory) {
  const Memory memory = make(F_SEAL_SHRINK);
  const auto ours = SharedMemory::map(memory), theirs = SharedMemory::map(memory);
  ASSERT_TRUE(ours.ok() && theirs.ok());
  (*ours)->data()[5000] = std::byte{42};
  EXPECT_EQ((*theirs)->data()[5000], std::byte{42});
}

TEST_F(SharedMemoryTest, MustBeSealed) {
  const auto mapped = SharedMemory::map(make(0));
  ASSERT_FALSE(mapped.ok());
  EXPECT_NE(mapped.error().message.find("sealed"), std::string::npos);
}

TEST_F(SharedMemoryTest, MustHaveItsSize) {
  Memory memory = make(F_SEAL_SHRINK);
  memory.bytes = 4096;
  const auto mapped = SharedMemory::map(memory);
  ASSERT_FALSE(mapped.ok());
  EXPECT_NE(mapped.error().message.find("8192 bytes, the manifest says 4096"), std::string::npos);
}

TEST_F(SharedMemoryTest, MustBeThere) {
  const auto mapped = SharedMemory::map({.bytes = 1, .path = "/proc/" + std::to_string(::getpid()) + "/fd/9999"});
  ASSERT_FALSE(mapped.ok());
  EXPECT_NE(mapped.error().message.find("PID namespace"), std::string::npos);
}

}  // namespace
}  // namespace lathe::vllm
