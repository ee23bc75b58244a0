#include "base/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <new>
#include <thread>
#include <vector>

namespace lathe {
namespace {

TEST(ParallelFor, EveryTurnHappensOnce) {
  for (const size_t threads : {1, 3, 16}) {
    std::vector<std::atomic<int>> seen(100);
    ASSERT_TRUE(parallel_for(seen.size(), threads, [&](size_t i, size_t worker) -> Status {
                  EXPECT_LT(worker, threads);
                  ++seen[i];
                  return {};
                }).ok());
    for (const auto& count : seen) ASSERT_EQ(count, 1);
  }
  EXPECT_TRUE(parallel_for(0, 4, [](size_t, size_t) -> Status { return internal("never called"); }).ok());
}

TEST(ParallelFor, AFailureStopsTheLoopAndTheLowestIsReturned) {
  std::atomic<int> turns{0};
  const Status done = parallel_for(1000, 4, [&](size_t i, size_t) -> Status {
    ++turns;
    if (i == 3) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    if (i == 3 || i == 4) return internal(std::to_string(i));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return {};
  });
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().message, "3");
  EXPECT_LT(turns, 1000);
}

TEST(ParallelFor, WhatIsThrownReachesTheCaller) {
  for (const size_t bad : {0, 7, 99}) {
    EXPECT_THROW((void)parallel_for(100, 4,
                                    [&](size_t i, size_t) -> Status {
                                      std::this_thread::sleep_for(std::chrono::milliseconds(1));
                                      if (i == bad) throw std::bad_alloc();
                                      return {};
                                    }),
                 std::bad_alloc);
  }
}

TEST(ParallelFor, OneThreadIsTheCallers) {
  const auto caller = std::this_thread::get_id();
  EXPECT_TRUE(parallel_for(5, 1, [&](size_t, size_t) -> Status {
                return std::this_thread::get_id() == caller ? Status() : Status(internal("another thread"));
              }).ok());
}

}  // namespace
}  // namespace lathe
