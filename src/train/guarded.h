// guarded: the border between torch's exceptions and our errors (docs/architecture.md).
//
// Threads: any.
#pragma once

#include <exception>
#include <string>

#include "base/result.h"

namespace lathe::train {

// work(), a Result; what torch throws becomes kInternal: "`what` failed: ...".
template <class Work>
auto guarded(const char* what, Work&& work) -> decltype(work()) {
  try {
    return work();
  } catch (const std::exception& e) {
    return internal(std::string(what) + " failed: " + e.what());
  }
}

}  // namespace lathe::train
