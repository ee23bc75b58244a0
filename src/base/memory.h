// Memory of this process and of the machine, from Linux's /proc. 0 where that has no number.
//
// Threads: any.
#pragma once

#include <cstdint>

namespace lathe {

int64_t resident_bytes();       // of this process, now
int64_t peak_resident_bytes();  // and at most so far
// What programs can still take, caches that would make room included.
int64_t available_bytes();

}  // namespace lathe
