// Weights that another program wrote: what becomes a version, and what is refused before anything changes.
#include "history/import.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "history/convert.h"
#include "history/test_model.h"

namespace lathe::history {
namespace {

using delta::Dtype;

struct Numbers {
  Dtype dtype;
  std::vector<int64_t> shape;
  std::vector<float> values;

  std::string bytes() const {
    std::string out(values.size() * static_cast<size_t>(delta::dtype_size(dtype)), '\0');
    for (size_t i = 0; i < values.size(); ++i) {
      if (dtype == Dtype::kF32) std::memcpy(out.data() + 4 * i, &values[i], 4);
      if (dtype == Dtype::kBF16) {
        const auto bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(values[i]) >> 16);
        std::memcpy(out.data() + 2 * i, &bits, 2);
      }
      if (dtype == Dtype::kF16) {  // of powers of two and 0
        const uint32_t bits = std::bit_cast<uint32_t>(values[i]);
        const auto half =
            static_cast<uint16_t>(values[i] == 0 ? 0 : (bits >> 16 & 0x8000U) | ((bits >> 23 & 0xFFU) - 112) << 10);
        std::memcpy(out.data() + 2 * i, &half, 2);
      }
    }
    return out;
  }
};
using Model = std::map<std::string, Numbers>;

const Tie kTie{.head = "lm_head.weight", .embedding = "embed.weight"};

class Import : public ::testing::Test {
 protected:
  void write(const std::string& directory, const Model& model) {
    ASSERT_TRUE(env_.create_directories(directory).ok());
    std::vector<delta::TensorInfo> infos;
    std::string data;
    for (const auto& [name, numbers] : model) {
      infos.push_back({.name = name, .dtype = numbers.dtype, .shape = numbers.shape});
      data += numbers.bytes();
    }
    write_file(env_, directory + "/model.safetensors", delta::format_header(infos, {{"format", "pt"}}) + data);
  }

  // Takes /other over; the error's message, or nothing.
  std::string take_over(const ImportOptions& options = {}) {
    const auto tensors = DirectoryTensors::open(env_, "/other", "/model", options);
    if (!tensors.ok()) return tensors.error().message;
    const auto report = sync(env_, "/model", *tensors, {}, on_one_thread());
    return report.ok() ? "" : report.error().message;
  }

  std::string bytes_of(const std::string& name, const std::string& directory = "/model") {
    const auto dir = delta::ModelDir::open(env_, directory).value();
    std::string out(dir.find(name)->size(), '\0');
    EXPECT_TRUE(dir.read(name, std::as_writable_bytes(std::span(out))).ok());
    return out;
  }

  io::FaultEnv env_;
  // One tensor of an odd number of bytes, so that those after it lie across the tiles' boundaries.
  Model model_ = {{"a.bytes", {Dtype::kBF16, {1}, {1}}},
                  {"embed.weight", {Dtype::kBF16, {2, 3}, {1, 2, 3, 4, 5, 6}}},
                  {"norm.weight", {Dtype::kF32, {3}, {1, 1, 1}}}};
};

#define EXPECT_SAYS(text, ...)                                          \
  for (const std::string& word : std::vector<std::string>{__VA_ARGS__}) \
  EXPECT_NE((text).find(word), std::string::npos) << "no '" << word << "' in: " << (text)

TEST_F(Import, TypesAreWidenedAsTheyAreAndRoundedIfAsked) {
  write("/model", model_);
  Model other = model_;
  other["embed.weight"] = {Dtype::kF32, {2, 3}, {1 + 0x1p-8F, -1 - 3 * 0x1p-8F, 3, 4, 5, 0x1p-126F}};
  other["norm.weight"] = {Dtype::kBF16, {3}, {2, 3, 4}};
  write("/other", other);
  const std::string before = bytes_of("embed.weight");
  EXPECT_SAYS(take_over(), "embed.weight", "F32", "BF16", "--round");
  EXPECT_EQ(bytes_of("embed.weight"), before);
  ASSERT_EQ(take_over({.round = true}), "");
  EXPECT_EQ(bytes_of("embed.weight"),
            (Numbers{Dtype::kBF16, {2, 3}, {1, -1 - 4 * 0x1p-8F, 3, 4, 5, 0x1p-126F}}.bytes()));
  EXPECT_EQ(bytes_of("norm.weight"), (Numbers{Dtype::kF32, {3}, {2, 3, 4}}.bytes()))
      << "wider is exact: nothing to ask";
  // Half precision has more digits than BF16, fewer than F32.
  other["embed.weight"] = {Dtype::kF16, {2, 3}, {1, 2, 4, 0.5F, 0, -2}};
  other["norm.weight"] = {Dtype::kF16, {3}, {8, 0.25F, -4}};
  write("/other", other);
  EXPECT_SAYS(take_over(), "embed.weight", "F16", "BF16", "--round");
  ASSERT_EQ(take_over({.round = true}), "");
  EXPECT_EQ(bytes_of("embed.weight"), (Numbers{Dtype::kBF16, {2, 3}, {1, 2, 4, 0.5F, 0, -2}}.bytes()));
  EXPECT_EQ(bytes_of("norm.weight"), (Numbers{Dtype::kF32, {3}, {8, 0.25F, -4}}.bytes()));
}

TEST_F(Import, NumbersAcrossTilesAreConvertedWhole) {
  constexpr int64_t kMany = 3'000'000;  // BF16: across the boundary between two tiles, at an odd number of bytes
  Numbers large{Dtype::kBF16, {kMany}, std::vector<float>(kMany)};
  for (int64_t i = 0; i < kMany; ++i) large.values[i] = static_cast<float>(i % 251) - 100;
  const auto write_odd = [&](const std::string& directory, const Numbers& numbers) {
    ASSERT_TRUE(env_.create_directories(directory).ok());
    std::vector<delta::TensorInfo> infos = {{.name = "a", .dtype = Dtype::kU8, .shape = {3}},
                                            {.name = "b", .dtype = numbers.dtype, .shape = numbers.shape}};
    write_file(env_, directory + "/model.safetensors", delta::format_header(infos, {}) + "odd" + numbers.bytes());
  };
  Numbers zeros = large;
  std::fill(zeros.values.begin(), zeros.values.end(), 0.0F);
  write_odd("/model", zeros);
  large.dtype = Dtype::kF32;
  write_odd("/other", large);
  ASSERT_EQ(take_over({.round = true}), "");
  large.dtype = Dtype::kBF16;
  EXPECT_TRUE(bytes_of("b") == large.bytes());
  EXPECT_EQ(bytes_of("a"), "odd");
}

TEST_F(Import, NumbersThatAreNotFiniteAreRefusedAndNothingChanges) {
  write("/model", model_);
  const float nan = std::numeric_limits<float>::quiet_NaN(), large = std::numeric_limits<float>::max();
  for (const auto& [name, value, round] :
       std::vector<std::tuple<std::string, float, bool>>{{"embed.weight", nan, false},
                                                         {"embed.weight", -INFINITY, false},
                                                         {"norm.weight", nan, false},
                                                         {"embed.weight", large, true}}) {
    Model other = model_;
    other["embed.weight"].values[0] = 7;
    other[name].values[1] = value;
    if (round) other[name].dtype = Dtype::kF32;
    write("/other", other);
    EXPECT_SAYS(take_over({.round = round}), name, "/other", "NaN or infinite");
    EXPECT_EQ(bytes_of("embed.weight"), model_["embed.weight"].bytes());
    EXPECT_TRUE(litter(env_, "/model").empty());
  }
}

TEST_F(Import, NumbersThatAreNotFiniteAreTakenOverIfAsked) {
  write("/model", model_);
  Model other = model_;
  other["norm.weight"].values[1] = -std::numeric_limits<float>::infinity();
  write("/other", other);
  ASSERT_EQ(take_over({.not_finite = true}), "");
  EXPECT_EQ(bytes_of("norm.weight"), other["norm.weight"].bytes());
}

TEST_F(Import, TensorsThatOnlyOneHasAreRefusedByName) {
  write("/model", model_);
  Model other = model_;
  other["adapter.weight"] = {Dtype::kF32, {1}, {1}};
  write("/other", other);
  EXPECT_SAYS(take_over(), "adapter.weight", "would be lost");
  other = model_;
  other.erase("norm.weight");
  write("/other", other);
  EXPECT_SAYS(take_over(), "has no tensor norm.weight");
  other = model_;
  other["norm.weight"].shape = {1, 3};
  write("/other", other);
  EXPECT_SAYS(take_over(), "norm.weight", "[1, 3]", "[3]");
  // A buffer that is computed from the configuration holds nothing.
  other = model_;
  other["layers.0.rotary_emb.inv_freq"] = {Dtype::kF32, {1}, {1}};
  write("/other", other);
  EXPECT_EQ(take_over(), "");
}

TEST_F(Import, ATiedHeadIsTheEmbeddingWhicheverSideStoresIt) {
  Model with_head = model_, other = model_;
  with_head["lm_head.weight"] = with_head["embed.weight"];
  other["embed.weight"].values = {6, 5, 4, 3, 2, 1};
  // Here, not there: it follows the embedding.
  write("/model", with_head);
  write("/other", other);
  ASSERT_EQ(take_over({.tie = kTie}), "");
  EXPECT_EQ(bytes_of("lm_head.weight"), other["embed.weight"].bytes());
  EXPECT_EQ(bytes_of("embed.weight"), other["embed.weight"].bytes());
  // There, not here: nothing is lost.
  other["lm_head.weight"] = other["embed.weight"];
  write("/other", other);
  ASSERT_TRUE(io::remove_tree(env_, "/model").ok());
  write("/model", model_);
  ASSERT_EQ(take_over({.tie = kTie}), "");
  EXPECT_EQ(bytes_of("embed.weight"), other["embed.weight"].bytes());
  // There, and another one: dropping it would lose it, on either side.
  other["lm_head.weight"].values[0] = 9;
  write("/other", other);
  EXPECT_SAYS(take_over({.tie = kTie}), "lm_head.weight", "embed.weight", "other numbers");
  EXPECT_SAYS(take_over(), "lm_head.weight", "would be lost");
  ASSERT_TRUE(io::remove_tree(env_, "/model").ok());
  write("/model", with_head);
  EXPECT_SAYS(take_over({.tie = kTie}), "lm_head.weight", "other numbers");
}

TEST_F(Import, ConvertedDirectoriesAreWholeOrAbsent) {
  Model half = model_;
  half["embed.weight"] = {Dtype::kF16, {2, 3}, {1, 2, 4, 0.5F, 0, -2}};
  write("/half", half);
  write_file(env_, "/half/config.json",
             R"({"torch_dtype":"float16","text_config":{"dtype":"float16"},"vocab_size":2})");
  write_file(env_, "/half/tokenizer.json", "{}");
  write_file(env_, "/half/pytorch_model.bin", "older weights");
  const auto report = convert(env_, "/half", "/new/bf16");
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->tensors, 3);
  EXPECT_EQ(report->converted, 2) << "F16 and F32";
  EXPECT_EQ(bytes_of("embed.weight", "/new/bf16"), (Numbers{Dtype::kBF16, {2, 3}, {1, 2, 4, 0.5F, 0, -2}}.bytes()));
  const auto dir = delta::ModelDir::open(env_, "/new/bf16").value();
  EXPECT_EQ(dir.find("norm.weight")->dtype, Dtype::kBF16);
  EXPECT_EQ(dir.shards()[0].header.metadata.at("format"), "pt");
  const auto config = nlohmann::json::parse(io::read_text(env_, "/new/bf16/config.json").value());
  EXPECT_EQ(config["torch_dtype"], "bfloat16");
  EXPECT_EQ(config["text_config"]["dtype"], "bfloat16");
  EXPECT_EQ(env_.list("/new/bf16").value(),
            (std::vector<std::string>{"config.json", "model.safetensors", "tokenizer.json"}));
  EXPECT_SAYS(convert(env_, "/half", "/new/bf16").error().message, "exists already");

  const auto wide = convert(env_, "/half", "/new/f32", {.dtype = Dtype::kF32});
  ASSERT_TRUE(wide.ok());
  EXPECT_EQ(bytes_of("embed.weight", "/new/f32"), (Numbers{Dtype::kF32, {2, 3}, {1, 2, 4, 0.5F, 0, -2}}.bytes()));

  half["norm.weight"].values[2] = std::numeric_limits<float>::max();
  write("/half", half);
  EXPECT_SAYS(convert(env_, "/half", "/new/other").error().message, "norm.weight", "once it is rounded");
  EXPECT_EQ(env_.list("/new").value(), (std::vector<std::string>{"bf16", "f32"})) << "a failure leaves nothing";
}

}  // namespace
}  // namespace lathe::history
