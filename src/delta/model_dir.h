// ModelDir: the safetensors files of a Hugging Face model directory, one or many, as one table of tensors.
//
// Memory: keeps the shards open; read() copies into the caller's memory.
// Threads: immutable after open(); any.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "delta/safetensors.h"
#include "io/env.h"

namespace lathe::delta {

struct Shard {
  std::string file;  // name inside the directory
  Header header;
  std::unique_ptr<io::RandomAccessFile> data;
};

class ModelDir {
 public:
  // Reads model.safetensors, or model.safetensors.index.json and the shards it names. Refuses by name a missing or
  // truncated shard, a malformed header, an index entry that its shard does not have, a tensor that two shards have.
  static Result<ModelDir> open(io::Env& env, const std::string& directory);

  const std::vector<Shard>& shards() const { return shards_; }
  // Null if there is no such tensor.
  const TensorInfo* find(std::string_view name) const;
  // Copies a tensor's bytes; `out` must have exactly its size.
  Status read(std::string_view name, std::span<std::byte> out) const;
  // Copies the part of a tensor's bytes that begins at `offset`.
  Status read(std::string_view name, uint64_t offset, std::span<std::byte> out) const;

 private:
  Status add_shard(io::Env& env, const std::string& directory, const std::string& file);

  std::vector<Shard> shards_;
  std::map<std::string, std::pair<size_t, size_t>, std::less<>> by_name_;  // shard, tensor
};

}  // namespace lathe::delta
