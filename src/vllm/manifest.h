// Manifest: where a serving engine keeps its weights, as the engine says it. One rank's part.
//
// Why so strict: Lathe writes into the memory that this text describes. What contradicts itself (sizes, offsets,
// tensors that overlap without being one) is refused by name before anything is mapped.
//
// Threads: values. Format page: docs/formats/manifest.md
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "delta/safetensors.h"

namespace lathe::vllm {

inline constexpr size_t kIpcHandleBytes = 64;

struct Memory {
  enum class Kind { kShared, kCudaIpc };
  Kind kind = Kind::kShared;
  uint64_t bytes = 0;
  std::string path;                                 // kShared: /proc/PID/fd/N
  std::string uuid;                                 // kCudaIpc: the GPU, as nvidia-smi prints it
  std::array<std::byte, kIpcHandleBytes> handle{};  // kCudaIpc: of the allocation's base
};

// All contiguous, row-major.
struct ServedTensor {
  std::string name;  // the engine's
  delta::Dtype dtype = delta::Dtype::kBF16;
  std::vector<int64_t> shape;
  size_t memory = 0;    // index into Manifest::memories
  uint64_t offset = 0;  // bytes
  uint64_t bytes = 0;   // of dtype and shape
};

// A way in which the engine runs that matters here.
struct Finding {
  std::string condition, found, remedy;
};

struct Manifest {
  std::string engine, engine_version;
  std::string directory;     // of the model, as the engine was given it
  std::string architecture;  // "LlamaForCausalLM"
  int64_t tensor_parallel = 1;
  int64_t pid = 0;                // of the process that holds the weights
  std::vector<Finding> refusals;  // each forbids teaching
  std::vector<Finding> warnings;  // works, with a drawback
  std::vector<Memory> memories;
  std::vector<ServedTensor> tensors;  // ascending by name; those at the same place are tied

  // Null if there is none.
  const ServedTensor* find(std::string_view name) const;

  // Refuses by name whatever does not hold together. Never reads outside `json`, whatever it holds.
  static Result<Manifest> parse(std::string_view json);
};

// `teaching is refused: condition (found): remedy; ...`, or nothing if there is no refusal.
Status check_refusals(const Manifest& manifest);

}  // namespace lathe::vllm
