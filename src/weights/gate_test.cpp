#include "weights/gate.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace lathe::weights {
namespace {

using namespace std::chrono_literals;

// Long enough for a thread that is wrongly let in to get in; a thread that is rightly kept out costs only the wait.
constexpr auto kLongEnough = 50ms;

template <class Hold>
std::jthread enter(Gate& gate, std::atomic<bool>& inside) {
  return std::jthread([&] {
    const Hold hold(gate);
    inside = true;
  });
}

bool gets_in(const std::atomic<bool>& inside) {
  for (int i = 0; i < 1000 && !inside; ++i) std::this_thread::sleep_for(5ms);
  return inside;
}

TEST(Gate, ReadersShareIt) {
  Gate gate;
  std::atomic<bool> inside{false};
  const Gate::Shared first(gate);
  const std::jthread second = enter<Gate::Shared>(gate, inside);
  EXPECT_TRUE(gets_in(inside));
}

TEST(Gate, AWriterWaitsForEveryReader) {
  Gate gate;
  std::atomic<bool> inside{false};
  std::jthread writer;
  {
    const Gate::Shared first(gate);
    {
      const Gate::Shared second(gate);
      writer = enter<Gate::Exclusive>(gate, inside);
      std::this_thread::sleep_for(kLongEnough);
      EXPECT_FALSE(inside);
    }
    std::this_thread::sleep_for(kLongEnough);
    EXPECT_FALSE(inside) << "one of two readers has left";
  }
  EXPECT_TRUE(gets_in(inside));
}

TEST(Gate, AReaderWaitsForTheWriter) {
  Gate gate;
  std::atomic<bool> inside{false};
  std::jthread reader;
  {
    const Gate::Exclusive alone(gate);
    reader = enter<Gate::Shared>(gate, inside);
    std::this_thread::sleep_for(kLongEnough);
    EXPECT_FALSE(inside);
  }
  EXPECT_TRUE(gets_in(inside));
}

TEST(Gate, AWriterWaitsForTheOtherWriter) {
  Gate gate;
  std::atomic<bool> inside{false};
  std::jthread other;
  {
    const Gate::Exclusive alone(gate);
    other = enter<Gate::Exclusive>(gate, inside);
    std::this_thread::sleep_for(kLongEnough);
    EXPECT_FALSE(inside);
  }
  EXPECT_TRUE(gets_in(inside));
}

TEST(Gate, AWaitingWriterStopsNewReaders) {
  Gate gate;
  std::atomic<bool> wrote{false}, read{false};
  std::jthread writer, reader;
  {
    const Gate::Shared first(gate);
    writer = enter<Gate::Exclusive>(gate, wrote);
    std::this_thread::sleep_for(kLongEnough);  // it waits for `first` now
    reader = enter<Gate::Shared>(gate, read);
    std::this_thread::sleep_for(kLongEnough);
    EXPECT_FALSE(read);
  }
  EXPECT_TRUE(gets_in(wrote));
  EXPECT_TRUE(gets_in(read));
}

// Readers and two writers as fast as they can. Everybody looks around several times while inside, and gives the
// processor away in between, so that somebody who should not be there is seen.
TEST(Gate, NobodyIsAmongReadersAndWritersWhoShouldNotBe) {
  Gate gate;
  std::atomic<int> reading{0}, writing{0}, overlaps{0}, reads{0}, writes{0};
  const auto look = [&](int allowed_readers, int allowed_writers) {
    for (int i = 0; i < 4; ++i) {
      if (reading > allowed_readers || writing > allowed_writers) overlaps++;
      std::this_thread::yield();
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 2000; ++i) {
          const Gate::Shared shared(gate);
          reading++;
          look(3, 0);
          reads++;
          reading--;
        }
      });
    }
    for (int t = 0; t < 2; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 250; ++i) {
          const Gate::Exclusive alone(gate);
          writing++;
          look(0, 1);
          writes++;
          writing--;
        }
      });
    }
  }
  EXPECT_EQ(overlaps, 0);
  EXPECT_EQ(reads, 6000);
  EXPECT_EQ(writes, 500);
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
