// Fuzz target: the manifest of a serving engine. Whatever the bytes are, they are refused, or all that they say lies
// inside the memories they name, and no two tensors share a byte unless they are one.
#include <string_view>

#include "vllm/manifest.h"
#include "vllm/names.h"

namespace {

using namespace lathe;

void check(const vllm::Manifest& manifest) {
  for (const vllm::ServedTensor& tensor : manifest.tensors) {
    LATHE_CHECK(tensor.memory < manifest.memories.size());
    const uint64_t room = manifest.memories[tensor.memory].bytes;
    LATHE_CHECK(tensor.bytes > 0 && tensor.bytes <= room && tensor.offset <= room - tensor.bytes);
    LATHE_CHECK(manifest.find(tensor.name) == &tensor);
    if (const auto name = vllm::checkpoint_name(tensor.name, "model.")) LATHE_CHECK(!vllm::parts_of(*name).empty());
    if (manifest.tensors.size() > 100) continue;
    for (const vllm::ServedTensor& other : manifest.tensors) {
      const bool apart = other.memory != tensor.memory || other.offset >= tensor.offset + tensor.bytes ||
                         tensor.offset >= other.offset + other.bytes;
      LATHE_CHECK(apart ||
                  (other.offset == tensor.offset && other.shape == tensor.shape && other.dtype == tensor.dtype));
    }
  }
  for (const vllm::Memory& memory : manifest.memories) {
    LATHE_CHECK(memory.bytes > 0);
    LATHE_CHECK(memory.kind == vllm::Memory::Kind::kCudaIpc || memory.path.starts_with("/proc/"));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const auto manifest = vllm::Manifest::parse({reinterpret_cast<const char*>(bytes), size});
  if (manifest.ok()) {
    check(*manifest);
    static_cast<void>(vllm::check_refusals(*manifest).ok());
  } else {
    LATHE_CHECK(!manifest.error().message.empty());
  }
  return 0;
}
