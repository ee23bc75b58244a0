// SharedMemory: another process's shared memory file, mapped for reading and writing.
//
// Memory: unmapped with the last reference; the file itself lives as long as any process has it, so a mapping outlives
// its exporter. Threads: any; the bytes are the caller's to guard.
#pragma once

#include <cstddef>
#include <memory>

#include "base/result.h"
#include "vllm/manifest.h"

namespace lathe::vllm {

class SharedMemory {
 public:
  // Refuses, naming it: what is no longer there or belongs to another user, another size than the manifest says, a file
  // that is not sealed against shrinking (a mapping of it could fault at any time).
  static Result<std::shared_ptr<SharedMemory>> map(const Memory& memory);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  SharedMemory(std::byte* data, size_t size) : data_(data), size_(size) {}
  std::byte* data_;
  size_t size_;
};

}  // namespace lathe::vllm
