// A model directory in a temporary folder, for the tests of this module.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "delta/model_dir.h"
#include "io/env.h"

namespace lathe::delta {

class TestDir {
 public:
  TestDir() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() /
            ("lathe-" + std::to_string(::getpid()) + "-" + info->test_suite_name() + "-" + info->name());
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TestDir() { std::filesystem::remove_all(path_); }

  std::string path() const { return path_.string(); }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }

  // A shard with one U8 tensor of `fill` per name.
  void shard(const std::string& file, const std::vector<std::string>& tensors, char fill, size_t size = 100) const {
    std::string header = "{", data;
    for (const std::string& name : tensors) {
      header += (header.size() > 1 ? "," : "") +
                ("\"" + name + R"(":{"dtype":"U8","shape":[)" + std::to_string(size) + R"(],"data_offsets":[)") +
                std::to_string(data.size()) + "," + std::to_string(data.size() + size) + "]}";
      data += std::string(size, fill);
    }
    header += "}";
    std::string length(8, '\0');
    const uint64_t n = header.size();
    std::memcpy(length.data(), &n, 8);
    write(file, length + header + data);
  }

  void two_shards(char fill) const {
    shard("model-1.safetensors", {"a", "b"}, fill);
    shard("model-2.safetensors", {"c"}, fill);
    write("model.safetensors.index.json",
          R"({"weight_map":{"a":"model-1.safetensors","b":"model-1.safetensors","c":"model-2.safetensors"}})");
  }

  // First byte of each tensor, as the directory now loads.
  std::string contents() const {
    const auto dir = ModelDir::open(io::posix_env(), path());
    if (!dir.ok()) return dir.error().message;
    std::string out;
    for (const Shard& shard : dir->shards()) {
      for (const TensorInfo& info : shard.header.tensors) {
        std::vector<std::byte> bytes(info.size());
        EXPECT_TRUE(dir->read(info.name, bytes).ok());
        for (const std::byte b : bytes) EXPECT_EQ(b, bytes[0]);
        out += static_cast<char>(bytes[0]);
      }
    }
    return out;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace lathe::delta
