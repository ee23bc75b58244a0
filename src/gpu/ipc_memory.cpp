#include "gpu/ipc_memory.h"

#ifdef LATHE_CUDA
#include <cuda.h>
#include <cuda_runtime_api.h>
#endif

#include <cstring>

#include "base/log.h"
#include "gpu/device.h"

namespace lathe::gpu {

Result<c10::Device> open_uuid(const std::string& uuid) {
  const Inventory found = LATHE_TRY(inventory());
  std::string seen;
  for (const DeviceInfo& device : found.devices) {
    if (device.uuid == uuid) return open("cuda:" + std::to_string(device.index));
    seen += (seen.empty() ? "" : ", ") + device.uuid;
  }
  return Error{Code::kUnavailable, "the weights are on GPU " + uuid + ", which this process does not see (it sees " +
                                       seen + "); check CUDA_VISIBLE_DEVICES"};
}

#ifdef LATHE_CUDA

namespace {

// The current device, for a scope: a mapping belongs to the context that is current when it is made.
class OnDevice {
 public:
  explicit OnDevice(c10::Device device) {
    cudaGetDevice(&previous_);
    cudaSetDevice(device.index());
  }
  ~OnDevice() { cudaSetDevice(previous_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int previous_ = 0;
};

Error failed(const char* what, cudaError_t code) {
  cudaGetLastError();  // it would stick to the next call
  std::string hint;
  if (code == cudaErrorInvalidValue || code == cudaErrorInvalidResourceHandle || code == cudaErrorMapBufferObjectFailed)
    hint = "; is the exporter still running, in a process other than this one and in the same PID namespace?";
  if (code == cudaErrorDeviceUninitialized || code == cudaErrorInvalidDevice)
    hint = "; containers must share the PID namespace (--pid=host or --pid=container:...)";
  return {Code::kUnavailable, std::string(what) + ": " + cudaGetErrorString(code) + hint};
}

// How large the allocation at `data` is. The driver's call, found through the run-time so that nothing links to the
// driver.
Result<size_t> allocation_size(void* data) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  if (const cudaError_t code =
          cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &entry, 12000, cudaEnableDefault, &found);
      code != cudaSuccess || found != cudaDriverEntryPointSuccess)
    return internal("the driver has no cuMemGetAddressRange");
  size_t size = 0;
  const auto range = reinterpret_cast<CUresult (*)(CUdeviceptr*, size_t*, CUdeviceptr)>(entry);
  if (range(nullptr, &size, reinterpret_cast<CUdeviceptr>(data)) != CUDA_SUCCESS)
    return internal("the driver does not know the size of a mapping it just made");
  return size;
}

}  // namespace

Result<std::shared_ptr<IpcMemory>> IpcMemory::open(c10::Device device,
                                                   const std::array<std::byte, kHandleBytes>& handle, uint64_t bytes) {
  static_assert(sizeof(cudaIpcMemHandle_t) == kHandleBytes);
  const OnDevice current(device);
  cudaIpcMemHandle_t raw;
  std::memcpy(&raw, handle.data(), sizeof raw);
  void* data = nullptr;
  if (const cudaError_t code = cudaIpcOpenMemHandle(&data, raw, cudaIpcMemLazyEnablePeerAccess); code != cudaSuccess)
    return failed("mapping another process's memory on the GPU", code);
  std::shared_ptr<IpcMemory> memory(new IpcMemory(device, data));
  const size_t size = LATHE_TRY(allocation_size(data));
  if (size < bytes) {
    return invalid_argument("an allocation on the GPU has " + std::to_string(size) + " bytes, the manifest says " +
                            std::to_string(bytes));
  }
  return memory;
}

IpcMemory::~IpcMemory() {
  const OnDevice current(device_);
  if (const cudaError_t code = cudaIpcCloseMemHandle(data_); code != cudaSuccess) {
    cudaGetLastError();
    log::warning(std::string("unmapping another process's memory on the GPU: ") + cudaGetErrorString(code));
  }
}

#else

Result<std::shared_ptr<IpcMemory>> IpcMemory::open(c10::Device, const std::array<std::byte, kHandleBytes>&, uint64_t) {
  return inventory().error();
}

IpcMemory::~IpcMemory() = default;

#endif

}  // namespace lathe::gpu
