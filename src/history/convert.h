// Convert: a copy of a model directory whose numbers are all of one type, for checkpoints in a type that is not served
// (F16, F64), or in several.
//
// Threads: one call; the source must stay still (lock_history(), if it has a history).
// Memory: 12 MiB.
// Durability: the new directory appears under its name when it is whole and durable, not before.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "delta/safetensors.h"
#include "delta/source.h"
#include "io/env.h"

namespace lathe::history {

struct ConvertOptions {
  delta::Dtype dtype = delta::Dtype::kBF16;  // or kF32
  delta::Progress progress;
};

struct ConvertReport {
  int64_t tensors = 0, converted = 0;  // of all; those that had another type
  uint64_t bytes = 0;                  // of tensors written
};

// Every tensor of a floating type is rounded to the nearest numbers of `dtype`; others, names, shapes and the files
// that tensors are in stay the same. config.json says the new type. `target` must not exist. kCorruption, naming the
// tensor, for NaN and infinite numbers, as they are or once rounded.
Result<ConvertReport> convert(io::Env& env, const std::string& source, const std::string& target,
                              const ConvertOptions& options = {});

}  // namespace lathe::history
