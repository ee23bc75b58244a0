#include "delta/model_dir.h"

#include <nlohmann/json.hpp>
#include <set>

#include "delta/other_formats.h"

namespace lathe::delta {
namespace {

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

// tensor -> shard file, from the index.
Result<std::map<std::string, std::string>> read_index(io::Env& env, const std::string& path) {
  const std::string text = LATHE_TRY(io::read_text(env, path));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    return corruption(path + " is not a safetensors index: it has no weight_map");
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : json["weight_map"].items()) {
    if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos) {
      return corruption(path + ": the file of tensor " + tensor + " is not a plain file name");
    }
    files[tensor] = file.get<std::string>();
  }
  return files;
}

}  // namespace

Result<ModelDir> ModelDir::open(io::Env& env, const std::string& directory) {
  ModelDir dir;
  const std::string index = directory + "/" + kIndex;
  if (LATHE_TRY(env.exists(directory + "/" + kSingle))) {
    LATHE_TRY(dir.add_shard(env, directory, kSingle));
    return dir;
  }
  if (!LATHE_TRY(env.exists(index))) {
    return no_safetensors(env, directory);
  }
  const auto files = LATHE_TRY(read_index(env, index));
  std::set<std::string> shards;
  for (const auto& [tensor, file] : files) shards.insert(file);
  for (const std::string& file : shards) LATHE_TRY(dir.add_shard(env, directory, file));
  for (const auto& [tensor, file] : files) {
    const auto found = dir.by_name_.find(tensor);
    if (found == dir.by_name_.end() || dir.shards_[found->second.first].file != file) {
      return corruption(index + " says that " + file + " holds tensor " + tensor + ", but it does not");
    }
  }
  return dir;
}

Status ModelDir::add_shard(io::Env& env, const std::string& directory, const std::string& file) {
  const std::string path = directory + "/" + file;
  Shard shard{.file = file};
  shard.data = LATHE_TRY(env.open_read(path));
  shard.header = LATHE_TRY(read_header(*shard.data).at(path));
  for (size_t t = 0; t < shard.header.tensors.size(); ++t) {
    const auto [at, fresh] = by_name_.try_emplace(shard.header.tensors[t].name, shards_.size(), t);
    if (!fresh)
      return corruption("tensor " + at->first + " is in both " + shards_[at->second.first].file + " and " + file);
  }
  shards_.push_back(std::move(shard));
  return {};
}

const TensorInfo* ModelDir::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &shards_[found->second.first].header.tensors[found->second.second];
}

Status ModelDir::read(std::string_view name, std::span<std::byte> out) const {
  const TensorInfo* info = find(name);
  if (info && out.size() != info->size()) return internal("read() of " + info->name + " into a buffer of another size");
  return read(name, 0, out);
}

Status ModelDir::read(std::string_view name, uint64_t offset, std::span<std::byte> out) const {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) return not_found("there is no tensor " + std::string(name));
  const Shard& shard = shards_[found->second.first];
  const TensorInfo& info = shard.header.tensors[found->second.second];
  if (offset > info.size() || out.size() > info.size() - offset) return internal("read() past the end of " + info.name);
  return shard.data->read_at(shard.header.data_offset + info.begin + offset, out);
}

}  // namespace lathe::delta
