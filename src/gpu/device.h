// NVIDIA GPUs: which there are, opening one, a thread's own stream.
//
// Why open() and not just at::kCUDA: LibTorch's CUDA part, which brings cuBLAS and cuDNN, is loaded when a GPU is
// first asked for. The same program then builds and runs on machines without it
// (docs/decisions/0005-load-cuda-late.md). Every function also works in a build without CUDA: it finds no GPU, and CPU
// devices need nothing.
//
// Threads: any. open() must come before other uses of torch in the process: torch decides once whether it has CUDA.
// Asynchronous: work on a GPU is queued; synchronize() waits until it is done.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lathe::gpu {

#ifdef LATHE_CUDA
inline constexpr bool kBuilt = true;
#else
inline constexpr bool kBuilt = false;
#endif

struct DeviceInfo {
  int index = 0;
  std::string name;
  std::string uuid;  // as nvidia-smi prints it
  int major = 0, minor = 0;
  int multiprocessors = 0;
  int64_t total_bytes = 0, free_bytes = 0;
};

struct Inventory {
  std::string driver;  // the newest CUDA it can run, "13.0"
  std::vector<DeviceInfo> devices;
};

// An error says why no GPU can be used: a build without CUDA, no driver, an old driver, no device.
Result<Inventory> inventory();

// "cpu", "cuda", "cuda:N", or "auto": the first GPU if there is a usable one, else the CPU. Refuses, naming the remedy,
// what is not there, GPUs without bf16 (compute capability under 8.0), and a LibTorch without its CUDA part.
Result<c10::Device> open(std::string_view name);

// Waits until the calling thread's stream on `device` is done. Does nothing on a CPU. Throws if a kernel failed.
void synchronize(c10::Device device);

// Waits at the end of its scope until the calling thread's stream on `device` is done, also when an exception ends the
// scope. Declared after a lock, it makes the lock cover the queued work and not only the queueing.
class Fence {
 public:
  explicit Fence(c10::Device device) : device_(device) {}
  ~Fence();
  Fence(const Fence&) = delete;
  Fence& operator=(const Fence&) = delete;

 private:
  c10::Device device_;
};

// While it lives, the calling thread's work on `device` goes to a stream of its own, concurrent with other threads'
// work.
class OwnStream {
 public:
  explicit OwnStream(c10::Device device);
  ~OwnStream();  // waits until the stream is done
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;

 private:
  c10::Device device_;
  c10::Stream previous_;
};

// "`what` failed: ..." of an exception that torch threw; where memory ran out, kExhausted, with the amount and the
// remedy.
Error error_of(const std::string& what, const std::exception& thrown);

// Bytes of `device` in tensors at most since reset_peak(); 0 on a CPU.
int64_t peak_bytes(c10::Device device);
void reset_peak(c10::Device device);

}  // namespace lathe::gpu
