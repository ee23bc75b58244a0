// guarded: the border between torch's exceptions and our errors (docs/architecture.md).
//
// Threads: any.
#pragma once

#include <exception>
#include <string>

#include "base/result.h"
#include "gpu/device.h"

namespace lathe::train {

// work(), a Result; what torch throws becomes the error "`what` failed: ..." (gpu::error_of).
template <class Work>
auto guarded(const char* what, Work&& work) -> decltype(work()) {
  try {
    return work();
  } catch (const std::exception& e) {
    return gpu::error_of(what, e);
  }
}

}  // namespace lathe::train
