// Freed memory stays with the process, in blocks small and large, until it is given back.
#include "base/heap.h"

#include <gtest/gtest.h>
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they bring their own heap

#include <cstring>
#include <memory>
#include <vector>

#include "base/memory.h"

namespace lathe {
namespace {

constexpr int64_t kMiB = 1 << 20;

void use(int64_t blocks, int64_t bytes) {
  std::vector<std::unique_ptr<char[]>> held;
  for (int64_t i = 0; i < blocks; ++i) {
    held.emplace_back(new char[bytes]);
    std::memset(held.back().get(), 1, bytes);
  }
}

class Heap : public testing::TestWithParam<int64_t> {};

TEST_P(Heap, KeepsWhatWasFreedUntilItIsGivenBack) {
  set_up_heap();
  const int64_t blocks = 256 * kMiB / GetParam(), before = resident_bytes();
  use(blocks, GetParam());
  EXPECT_GT(resident_bytes() - before, 250 * kMiB);
  give_back_heap();
  EXPECT_LT(resident_bytes() - before, 16 * kMiB);
}

INSTANTIATE_TEST_SUITE_P(BlocksOf, Heap, testing::Values(kMiB / 2, 4 * kMiB, 64 * kMiB));

}  // namespace
}  // namespace lathe
#endif
