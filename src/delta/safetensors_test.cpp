#include "delta/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

namespace lathe::delta {
namespace {

std::vector<std::byte> file_of(const std::string& json, size_t data_bytes) {
  std::vector<std::byte> file(8 + json.size() + data_bytes);
  const uint64_t length = json.size();
  std::memcpy(file.data(), &length, 8);
  std::memcpy(file.data() + 8, json.data(), json.size());
  return file;
}

std::string refusal(const std::string& json, size_t data_bytes) {
  const auto file = file_of(json, data_bytes);
  const auto header = parse_header(file, file.size());
  return header.ok() ? "accepted" : header.error().message;
}

constexpr const char* kGood =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})";

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirData) {
  const auto file = file_of(kGood, 16);
  const auto header = parse_header(file, file.size());
  ASSERT_TRUE(header.ok()) << header.error().message;
  ASSERT_EQ(header->tensors.size(), 2U);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(header->tensors[1].dtype, Dtype::kBF16);
  EXPECT_EQ(header->metadata.at("format"), "pt");
  EXPECT_EQ(header->data_offset, file.size() - 16);
}

TEST(Safetensors, ReadsTheHeadersItWrites) {
  std::vector<TensorInfo> tensors = {{.name = "b", .dtype = Dtype::kBF16, .shape = {2, 3}},
                                     {.name = "a", .dtype = Dtype::kI64, .shape = {}},
                                     {.name = "none", .dtype = Dtype::kF32, .shape = {0, 4}}};
  const std::string text = format_header(tensors, {{"kind", "test"}});
  EXPECT_EQ(text.size() % 8, 0U);
  std::vector<std::byte> file(text.size() + 20);
  std::memcpy(file.data(), text.data(), text.size());
  const auto header = parse_header(file, file.size());
  ASSERT_TRUE(header.ok()) << header.error().message;
  EXPECT_EQ(header->metadata.at("kind"), "test");
  ASSERT_EQ(header->tensors.size(), 3U);
  for (const TensorInfo& expected : tensors) {
    const auto found = std::find_if(header->tensors.begin(), header->tensors.end(),
                                    [&](const TensorInfo& t) { return t.name == expected.name; });
    ASSERT_NE(found, header->tensors.end());
    EXPECT_EQ(found->shape, expected.shape);
    EXPECT_EQ(found->dtype, expected.dtype);
    EXPECT_EQ(found->begin, expected.begin);
    EXPECT_EQ(found->size(), expected.size());
  }
}

TEST(Safetensors, RefusesByName) {
  EXPECT_NE(refusal(kGood, 15).find("truncated"), std::string::npos);
  EXPECT_NE(refusal(kGood, 17).find("after its last tensor"), std::string::npos);
  EXPECT_NE(refusal("[]", 0).find("not a JSON object"), std::string::npos);
  EXPECT_NE(refusal("{", 0).find("not a JSON object"), std::string::npos);
  const auto tensor = [](const std::string& body) { return R"({"t":{)" + body + "}}"; };
  EXPECT_NE(refusal(tensor(R"("dtype":"F31","shape":[1],"data_offsets":[0,4])"), 4).find("F31"), std::string::npos);
  EXPECT_NE(refusal(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), 4).find("8"), std::string::npos);
  EXPECT_NE(refusal(tensor(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4).find("unsigned"),
            std::string::npos);
  EXPECT_NE(refusal(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), 4).find("tensor t"),
            std::string::npos);
  EXPECT_NE(refusal(tensor(R"("dtype":"F32","shape":[1])"), 4).find("exactly"), std::string::npos);
  EXPECT_NE(refusal(tensor(R"("dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0])"), 0).find("2^64"),
            std::string::npos);
  EXPECT_NE(
      refusal(
          R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
          2)
          .find("twice"),
      std::string::npos);
  EXPECT_NE(
      refusal(
          R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"u":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
          2)
          .find("begins at"),
      std::string::npos);
  EXPECT_NE(refusal(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2).find("begins at 1"),
            std::string::npos);
  std::string deep = R"({"a":)";
  for (int i = 0; i < 1000; ++i) deep += "[";
  EXPECT_NE(refusal(deep, 0), "accepted");
}

TEST(Safetensors, RefusesALengthBeyondTheFile) {
  auto file = file_of(kGood, 16);
  for (const uint64_t length : {uint64_t{0xFFFFFFFFFFFFFFFF}, uint64_t{file.size()}, uint64_t{1} << 40}) {
    std::memcpy(file.data(), &length, 8);
    EXPECT_FALSE(parse_header(file, file.size()).ok()) << length;
  }
  EXPECT_FALSE(parse_header({}, 0).ok());
}

// Whatever bytes come: an answer, no crash, nothing outside the file named as a tensor. The sanitizer build watches the
// reads.
TEST(Safetensors, AnyDamageIsAnErrorOrAHeaderThatHolds) {
  const auto good = file_of(kGood, 16);
  std::mt19937 random(1);
  int64_t accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    auto file = good;
    const int edits = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < edits; ++i) file[random() % file.size()] = static_cast<std::byte>(random());
    if (random() % 8 == 0) file.resize(random() % file.size());
    const auto header = parse_header(file, file.size());
    if (!header.ok()) continue;
    ++accepted;
    for (const TensorInfo& info : header->tensors) ASSERT_LE(header->data_offset + info.end, file.size());
  }
  EXPECT_GT(accepted, 0) << "edits of tensor bytes and names must still be accepted";
}

}  // namespace
}  // namespace lathe::delta
