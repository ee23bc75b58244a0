// Independent pieces of work on several threads.
//
// Threads: started and joined inside; with one thread, or one piece, everything runs on the caller's.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/result.h"

namespace lathe {

// `threads` or, for 0, as many as the machine runs at once.
inline size_t thread_count(int threads) {
  return threads > 0 ? static_cast<size_t>(threads) : std::max(1U, std::thread::hardware_concurrency());
}

// Calls work(i, worker) -> Status for every i < count, each once, until one fails. `worker` < threads tells the threads
// apart. Returns the failure with the lowest i; pieces after it may have run or not. What work throws on any thread is
// thrown again on the caller's, once all have ended.
template <class Work>
Status parallel_for(size_t count, size_t threads, Work&& work) {
  std::atomic<size_t> next = 0;
  std::atomic<size_t> failed = count;
  std::mutex mutex;
  std::optional<Error> error;
  std::exception_ptr thrown;
  const auto pieces = [&](size_t worker) {
    for (size_t i; (i = next.fetch_add(1)) < failed.load();) {
      const Status done = work(i, worker);
      if (done.ok()) continue;
      const std::lock_guard lock(mutex);
      if (i >= failed.load()) continue;
      failed = i;
      error = done.error();
    }
  };
  const auto run = [&](size_t worker) {
    try {
      pieces(worker);
    } catch (...) {
      const std::lock_guard lock(mutex);
      failed = 0;  // nobody begins another piece
      thrown = std::current_exception();
    }
  };
  std::vector<std::jthread> others;
  for (size_t worker = 1; worker < std::min(threads, count); ++worker) others.emplace_back(run, worker);
  run(0);
  others.clear();  // joins
  if (thrown) std::rethrow_exception(thrown);
  return error ? Status(*error) : Status();
}

}  // namespace lathe
