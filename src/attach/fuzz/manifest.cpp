// Fuzz target: the manifest of a serving engine. Whatever the bytes are, they are refused, or all that they say lies
// inside the memories they name, and no two tensors share a byte unless they are one.
#include <string_view>

#include "attach/manifest.h"
#include "attach/names.h"

namespace {

using namespace lathe;

void check(const attach::Manifest& manifest) {
  for (const attach::ServedTensor& tensor : manifest.tensors) {
    LATHE_CHECK(tensor.memory < manifest.memories.size());
    const uint64_t room = manifest.memories[tensor.memory].bytes;
    LATHE_CHECK(tensor.bytes > 0 && tensor.bytes <= room && tensor.offset <= room - tensor.bytes);
    LATHE_CHECK(manifest.find(tensor.name) == &tensor);
    if (const auto name = attach::checkpoint_name(tensor.name, "model.")) LATHE_CHECK(!attach::parts_of(*name).empty());
    if (manifest.tensors.size() > 100) continue;
    for (const attach::ServedTensor& other : manifest.tensors) {
      const bool apart = other.memory != tensor.memory || other.offset >= tensor.offset + tensor.bytes ||
                         tensor.offset >= other.offset + other.bytes;
      LATHE_CHECK(apart ||
                  (other.offset == tensor.offset && other.shape == tensor.shape && other.dtype == tensor.dtype));
    }
  }
  for (const attach::Memory& memory : manifest.memories) {
    LATHE_CHECK(memory.bytes > 0);
    LATHE_CHECK(memory.kind == attach::Memory::Kind::kCudaIpc || memory.path.starts_with("/proc/"));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const auto manifest = attach::Manifest::parse({reinterpret_cast<const char*>(bytes), size});
  if (manifest.ok()) {
    check(*manifest);
    static_cast<void>(attach::check_refusals(*manifest).ok());
  } else {
    LATHE_CHECK(!manifest.error().message.empty());
  }
  return 0;
}
