// Small models in any Env, for the tests of this module.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "delta/model_dir.h"
#include "history/export.h"
#include "history/history.h"
#include "history/sync.h"
#include "io/fault_env.h"

namespace lathe::history {

// Tensor name to bytes (U8), of which shard.
struct TestTensor {
  std::string shard, name, bytes;
};
using TestModel = std::vector<TestTensor>;

inline void write_file(io::Env& env, const std::string& path, std::string_view bytes) {
  ASSERT_TRUE(io::write_text_atomically(env, path, bytes).ok()) << path;
}

// Shards, index and config. All durable.
inline void write_model(io::Env& env, const std::string& directory, const TestModel& model) {
  ASSERT_TRUE(env.create_directories(directory).ok());
  std::map<std::string, std::vector<const TestTensor*>> shards;
  for (const TestTensor& tensor : model) shards[tensor.shard].push_back(&tensor);
  std::string index;
  for (const auto& [file, tensors] : shards) {
    std::vector<delta::TensorInfo> infos;
    std::string data;
    for (const TestTensor* tensor : tensors) {
      infos.push_back(
          {.name = tensor->name, .dtype = delta::Dtype::kU8, .shape = {static_cast<int64_t>(tensor->bytes.size())}});
      data += tensor->bytes;
      if (!index.empty()) index += ",";
      index += "\"" + tensor->name + "\":\"" + file + "\"";
    }
    write_file(env, directory + "/" + file, delta::format_header(infos, {}) + data);
  }
  if (shards.size() > 1 || !shards.contains("model.safetensors")) {
    write_file(env, directory + "/model.safetensors.index.json", "{\"weight_map\":{" + index + "}}");
  }
  write_file(env, directory + "/config.json", "{}");
}

// Three shards. In `fill` the first letter is that of most bytes, further letters are of single bytes far apart.
inline TestModel small_model(const std::string& fill) {
  TestModel model = {{"model-1.safetensors", "a", std::string(700, fill[0])},
                     {"model-1.safetensors", "b", std::string(900, fill[0])},
                     {"model-2.safetensors", "c", std::string(9000, fill[0])},
                     {"model-3.safetensors", "d", std::string(600, fill[0])}};
  for (size_t i = 1; i < fill.size(); ++i) model[2].bytes[i * 4200] = fill[i];
  return model;
}

// Tensors by name, from memory.
class MemoryTensors final : public delta::TensorReader {
 public:
  explicit MemoryTensors(const TestModel& model) {
    for (const TestTensor& tensor : model) bytes_[tensor.name] = tensor.bytes;
  }
  std::optional<uint64_t> size(std::string_view tensor) const override {
    const auto found = bytes_.find(std::string(tensor));
    if (found == bytes_.end()) return std::nullopt;
    return found->second.size();
  }
  Status read(std::string_view tensor, uint64_t offset, std::span<std::byte> out) const override {
    std::memcpy(out.data(), bytes_.at(std::string(tensor)).data() + offset, out.size());
    return {};
  }

 private:
  std::map<std::string, std::string> bytes_;
};

// "0*700 1" for 700 zeros and a one: what a failed comparison prints.
inline std::string run_lengths(const std::map<std::string, std::string>& tensors) {
  std::string out;
  for (const auto& [name, bytes] : tensors) {
    out += name + ":";
    for (size_t begin = 0, end = 0; begin < bytes.size(); begin = end) {
      end = std::min(bytes.find_first_not_of(bytes[begin], begin), bytes.size());
      out += std::string(" ") + bytes[begin] + (end - begin > 1 ? "*" + std::to_string(end - begin) : "");
    }
    out += "; ";
  }
  return out;
}

// All tensors of a directory, as any reader of safetensors would find them; or what is wrong with it.
inline std::string contents(io::Env& env, const std::string& directory) {
  const auto dir = delta::ModelDir::open(env, directory);
  if (!dir.ok()) return dir.error().message;
  std::map<std::string, std::string> tensors;
  for (const delta::Shard& shard : dir->shards()) {
    for (const delta::TensorInfo& info : shard.header.tensors) {
      std::string bytes(info.size(), '\0');
      const Status read = dir->read(info.name, std::as_writable_bytes(std::span(bytes)));
      if (!read.ok()) return read.error().message;
      tensors[info.name] = bytes;
    }
  }
  return run_lengths(tensors);
}

inline std::string contents(const TestModel& model) {
  std::map<std::string, std::string> tensors;
  for (const TestTensor& tensor : model) tensors[tensor.name] = tensor.bytes;
  return run_lengths(tensors);
}

// Names of files that should not be there: temporary ones, and the journal of an apply that ended.
inline std::vector<std::string> litter(io::Env& env, const std::string& directory) {
  std::vector<std::string> found;
  const auto names = env.list(directory);
  if (!names.ok()) return found;
  for (const std::string& name : *names) {
    const std::string path = directory + "/" + name;
    if (name.ends_with(delta::kNew)) found.push_back(path);
    const auto stat = env.stat(path);
    if (stat.ok() && stat->is_directory && !stat->is_symlink) {
      for (std::string& inside : litter(env, path)) found.push_back(std::move(inside));
    }
  }
  return found;
}

// Room for the largest shard of a small model to be rewritten, and for `beside`, not for all shards.
inline void leave_little_room(io::FaultEnv& env, uint64_t beside) {
  const uint64_t used = UINT64_MAX - env.free_space("/").value();
  env.set_capacity(used + kSpareBytes + 9'200 + beside);
}

inline SyncOptions on_one_thread(SyncOptions options = {}) {
  options.apply.threads = 1;
  return options;
}

}  // namespace lathe::history
