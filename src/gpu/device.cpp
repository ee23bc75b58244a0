#include "gpu/device.h"

#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#ifdef LATHE_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>
#endif

#include <array>
#include <charconv>
#include <cstdio>

#include "base/log.h"

namespace lathe::gpu {
namespace {

Error unavailable(std::string message) {
  return {Code::kUnavailable, std::move(message)};
}

#ifdef LATHE_CUDA

constexpr int kOldestMajor = 8;  // the first with bf16

std::string version_text(int version) {  // 13000 -> "13.0"
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string uuid_text(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (size_t i = 0; i < sizeof uuid.bytes; ++i) {
    std::array<char, 3> hex{};
    std::snprintf(hex.data(), hex.size(), "%02x", static_cast<unsigned char>(uuid.bytes[i]));
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += hex.data();
  }
  return text;
}

Result<DeviceInfo> describe(int index) {
  cudaDeviceProp properties{};
  if (const cudaError_t code = cudaGetDeviceProperties(&properties, index); code != cudaSuccess) {
    return unavailable("GPU " + std::to_string(index) + " cannot be used: " + cudaGetErrorString(code));
  }
  DeviceInfo info{.index = index,
                  .name = properties.name,
                  .uuid = uuid_text(properties.uuid),
                  .major = properties.major,
                  .minor = properties.minor,
                  .multiprocessors = properties.multiProcessorCount,
                  .total_bytes = static_cast<int64_t>(properties.totalGlobalMem)};
  int previous = 0;
  cudaGetDevice(&previous);
  size_t free = 0, total = 0;
  if (cudaSetDevice(index) == cudaSuccess && cudaMemGetInfo(&free, &total) == cudaSuccess) {
    info.free_bytes = static_cast<int64_t>(free);
  }
  cudaSetDevice(previous);
  return info;
}

// Makes LibTorch's CUDA kernels known to its dispatcher. They register themselves when the library is loaded.
Status load_kernels() {
  static const bool loaded = ::dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr;
  if (!loaded) {
    const char* reason = ::dlerror();
    return unavailable("LibTorch's CUDA part cannot be loaded" + (reason ? " (" + std::string(reason) + ")" : "") +
                       "; point LATHE_TORCH_ROOT (when building) or LD_LIBRARY_PATH at a complete torch 2.11.0 with "
                       "CUDA 13.0, its torch/lib and nvidia/*/lib");
  }
  if (!at::globalContext().hasCUDA()) {
    return internal("the GPU was opened after torch had decided to use only the CPU; open it first");
  }
  return {};
}

Result<c10::Device> open_gpu(int index) {
  const Inventory found = LATHE_TRY(inventory());
  if (index >= static_cast<int>(found.devices.size())) {
    return invalid_argument("there is no GPU cuda:" + std::to_string(index) + "; this machine has " +
                            std::to_string(found.devices.size()));
  }
  const DeviceInfo& info = found.devices[index];
  if (info.major < kOldestMajor) {
    return unsupported("cuda:" + std::to_string(index) + " is " + info.name + ", compute capability " +
                       std::to_string(info.major) + "." + std::to_string(info.minor) + "; Lathe needs 8.0 or newer");
  }
  LATHE_TRY(load_kernels());
  at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
  return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
}

#else

Result<c10::Device> open_gpu(int) {
  return inventory().error();
}

#endif

}  // namespace

#ifdef LATHE_CUDA

Result<Inventory> inventory() {
  Inventory out;
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return unavailable("there is no NVIDIA driver on this machine");
  }
  out.driver = version_text(driver);
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess) {
    cudaGetLastError();  // it would stick to the next call
    std::string why = cudaGetErrorString(code);
    if (code == cudaErrorInsufficientDriver) {
      why = "the NVIDIA driver knows CUDA up to " + out.driver + ", Lathe needs " + version_text(CUDART_VERSION) +
            "; update the driver";
    }
    return unavailable("no GPU can be used: " + why);
  }
  if (count == 0) return unavailable("the NVIDIA driver shows no GPU");
  for (int index = 0; index < count; ++index) out.devices.push_back(LATHE_TRY(describe(index)));
  return out;
}

int64_t peak_bytes(c10::Device device) {
  if (!device.is_cuda()) return 0;
  using c10::CachingAllocator::StatType;
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<size_t>(StatType::AGGREGATE)].peak;
}

void reset_peak(c10::Device device) {
  if (device.is_cuda()) c10::cuda::CUDACachingAllocator::resetPeakStats(device.index());
}

#else

Result<Inventory> inventory() {
  return unavailable("this build of Lathe has no CUDA; build it with 'make build CUDA=1'");
}

int64_t peak_bytes(c10::Device) {
  return 0;
}

void reset_peak(c10::Device) {}

#endif

Result<c10::Device> open(std::string_view name) {
  const c10::Device cpu(c10::DeviceType::CPU);
  if (name == "cpu") return cpu;
  if (name == "auto") {
    const auto first = open_gpu(0);
    return first.ok() ? *first : cpu;
  }
  if (name == "cuda") return open_gpu(0);
  constexpr std::string_view kPrefix = "cuda:";
  int index = -1;
  const char* end = name.data() + name.size();
  if (name.starts_with(kPrefix)) {
    const auto parsed = std::from_chars(name.data() + kPrefix.size(), end, index);
    if (parsed.ec != std::errc() || parsed.ptr != end) index = -1;
  }
  if (index < 0) {
    return invalid_argument("there is no device '" + std::string(name) + "'; use auto, cpu, cuda or cuda:N");
  }
  return open_gpu(index);
}

void synchronize(c10::Device device) {
  if (device.is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeStream(guard.getStream(device));
}

Fence::~Fence() {
  try {
    synchronize(device_);
  } catch (const std::exception& e) {
    // A failed kernel: the next caller that asks the device gets the same error.
    log::error("waiting for " + device_.str() + " failed: " + e.what());
  }
}

Error error_of(const std::string& what, const std::exception& thrown) {
  const auto* error = dynamic_cast<const c10::Error*>(&thrown);
  const std::string text = error ? error->what_without_backtrace() : thrown.what();
  if (!dynamic_cast<const c10::OutOfMemoryError*>(&thrown)) return internal(what + " failed: " + text);
  // torch's first sentences say how much was asked for and how much there is; what follows is advice on its allocator.
  const size_t end = text.find(" Of the allocated memory");
  return {Code::kExhausted, what + " does not fit: " + text.substr(0, end) +
                                " Use fewer or shorter examples or prompts at once, or a GPU with more free memory."};
}

OwnStream::OwnStream(c10::Device device) : device_(device), previous_(c10::Stream::DEFAULT, device) {
  if (device.is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.setDevice(device);
  previous_ = guard.exchangeStream(guard.getNewStream(device));
}

OwnStream::~OwnStream() {
  if (device_.is_cpu()) return;
  { const Fence fence(device_); }
  c10::impl::VirtualGuardImpl(device_.type()).exchangeStream(previous_);
}

}  // namespace lathe::gpu
