// ConnectionPool: the threads that hold connections, one each. Private to src/http.
//
// Why: a client that sends half a request, or reads a long answer, occupies its thread for as long as it likes. So
// there may be many more threads than requests that work at once (Places): what a server says of itself is then
// answered whatever the others do.
// Threads: enqueue() and shutdown() from the listener's; jobs run on the pool's. A job that throws ends alone.
// Memory: a thread is started when no other is free, and ends after a minute without work.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

namespace lathe::http {

class ConnectionPool {
 public:
  // Further connections wait until one of the `most` threads is free.
  explicit ConnectionPool(size_t most) : most_(most) {}

  void enqueue(std::function<void()> job);
  // Waits for all jobs, queued ones too.
  void shutdown();

 private:
  using Thread = std::list<std::thread>::iterator;
  void work(Thread self);
  bool start_thread();

  const size_t most_;
  std::mutex mutex_;  // guards all below
  std::condition_variable arrived_, left_;
  std::deque<std::function<void()>> jobs_;
  std::list<std::thread> threads_, ended_;  // those that ended wait to be joined
  size_t idle_ = 0;
  bool ending_ = false;
};

// How many requests work at once.
class Places {
 public:
  explicit Places(size_t count) : free_(count) {}

  // Waits for a place, which is free again when the last copy of what it returns is gone.
  std::shared_ptr<void> take();

 private:
  std::mutex mutex_;  // guards free_
  std::condition_variable freed_;
  size_t free_;
};

}  // namespace lathe::http
