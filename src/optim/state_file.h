// Optimizer state as a safetensors file. Format page: docs/formats/optimizer_state.md.
//
// Threads: pure but for the file.
#pragma once

#include <cstddef>
#include <span>

#include "base/result.h"
#include "io/env.h"
#include "optim/optimizer.h"

namespace lathe::optim {

// Appends the whole file. **Durability** is the caller's: sync and rename.
Status write_state(const OptimizerState& state, io::WritableFile& file);

// Refuses what is not such a file. The tensors are copies. Whether it is this model's state is for
// Optimizer::restore().
Result<OptimizerState> read_state(std::span<const std::byte> file);

}  // namespace lathe::optim
