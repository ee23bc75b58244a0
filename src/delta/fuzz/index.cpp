// Fuzz target: model.safetensors.index.json, beside two whole shards. Whatever the bytes are, they are refused by a
// message, or every tensor that the index names can be read.
#include <string_view>
#include <vector>

#include "delta/model_dir.h"
#include "io/fault_env.h"

namespace {

using namespace lathe;

void put(io::Env& env, const std::string& name, std::string_view contents) {
  const auto file = env.create("/model/" + name);
  LATHE_CHECK(file.ok() && (*file)->append(std::as_bytes(std::span(contents))).ok());
}

std::string shard(const std::string& tensor) {
  delta::TensorInfo info{.name = tensor, .dtype = delta::Dtype::kU8, .shape = {4}};
  return delta::format_header({&info, 1}, {}) + "four";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  io::FaultEnv env;
  LATHE_CHECK(env.create_directories("/model").ok());
  put(env, "1.safetensors", shard("a"));
  put(env, "2.safetensors", shard("b"));
  put(env, "model.safetensors.index.json", {reinterpret_cast<const char*>(bytes), size});
  const auto dir = delta::ModelDir::open(env, "/model");
  if (!dir.ok()) {
    LATHE_CHECK(!dir.error().message.empty());
    return 0;
  }
  for (const delta::Shard& one : dir->shards()) {
    for (const delta::TensorInfo& info : one.header.tensors) {
      std::vector<std::byte> out(info.size());
      LATHE_CHECK(dir->find(info.name) == &info && dir->read(info.name, out).ok());
    }
  }
  return 0;
}
