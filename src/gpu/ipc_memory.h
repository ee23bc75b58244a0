// IpcMemory: an allocation on a GPU that another process made and shares (CUDA's inter-process handles).
//
// Why one object per allocation: a process may open a handle once, and gets the whole allocation, of which a tensor is
// a stretch. Memory: the mapping ends with the last reference; the exporter must outlive it, and if it does not, every
// access fails with an error of CUDA, never silently. Threads: any may open; kernels follow the usual rules.
#pragma once

#include <c10/core/Device.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"

namespace lathe::gpu {

// The device with this UUID, as nvidia-smi prints it: numbers differ between processes, this does not. Opens it.
Result<c10::Device> open_uuid(const std::string& uuid);

class IpcMemory {
 public:
  static constexpr size_t kHandleBytes = 64;

  // An error says what CUDA said, and what may be the reason. The size is checked against the driver's.
  static Result<std::shared_ptr<IpcMemory>> open(c10::Device device, const std::array<std::byte, kHandleBytes>& handle,
                                                 uint64_t bytes);
  ~IpcMemory();
  IpcMemory(const IpcMemory&) = delete;
  IpcMemory& operator=(const IpcMemory&) = delete;

  void* data() const { return data_; }

 private:
  IpcMemory(c10::Device device, void* data) : device_(device), data_(data) {}
  c10::Device device_;
  void* data_;
};

}  // namespace lathe::gpu
