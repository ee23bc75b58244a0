#include "base/heap.h"

#include <cstdlib>  // says whether this is glibc
#include <limits>
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace lathe {

void set_up_heap() {
#ifdef __GLIBC__
  if (mallopt(M_MMAP_THRESHOLD, 1 << 30) == 0) mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that old ones allow
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
#endif
}

void give_back_heap() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace lathe
