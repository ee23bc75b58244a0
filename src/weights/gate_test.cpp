#include "weights/gate.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace lathe::weights {
namespace {

TEST(Gate, AWriterIsNeverAmongReaders) {
  Gate gate;
  std::atomic<int> readers{0}, overlaps{0}, reads{0}, writes{0};
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 2000; ++i) {
          const Gate::Shared shared(gate);
          readers++;
          reads++;
          readers--;
        }
      });
    }
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        const Gate::Exclusive alone(gate);
        if (readers.load() != 0) overlaps++;
        writes++;
      }
    });
  }
  EXPECT_EQ(overlaps.load(), 0);
  EXPECT_EQ(reads.load(), 6000);
  EXPECT_EQ(writes.load(), 500);
}

TEST(Gate, AWriterIsNotStarvedByReadersThatNeverPause) {
  Gate gate;
  std::atomic<bool> stop{false};
  std::vector<std::jthread> readers;
  for (int t = 0; t < 3; ++t) {
    readers.emplace_back([&] {
      while (!stop) const Gate::Shared shared(gate);
    });
  }
  for (int i = 0; i < 50; ++i)
    const Gate::Exclusive alone(gate);  // returns, or the test's time limit says it never did
  stop = true;
}

}  // namespace
}  // namespace lathe::weights
