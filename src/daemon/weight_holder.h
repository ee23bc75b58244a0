// WeightHolder: whoever serves the weights from another process, told around every change of them.
//
// In `lathe serve` the Gate does this between two threads; here it is a protocol with a server that may refuse, or die.
// Threads: the teaching thread.
#pragma once

#include <cstdint>

#include "base/result.h"

namespace lathe::daemon {

class WeightHolder {
 public:
  virtual ~WeightHolder() = default;

  // Returns once the weights may be changed. An error means that they may not, and that nothing is open.
  virtual Status begin() = 0;
  // They are whole again, and of this version.
  virtual Status end(int64_t version) = 0;
  // Instead of end(): they are to be as the model directory has them.
  virtual Status abandon() = 0;
  // The model directory has them as they are now.
  virtual Status durable() = 0;
};

}  // namespace lathe::daemon
