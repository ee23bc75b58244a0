#include "http/connection_pool.h"

#include <chrono>
#include <string>
#include <system_error>
#include <utility>

#include "base/log.h"
#include "base/thread_border.h"

namespace lathe::http {

bool ConnectionPool::start_thread() {
  const Thread self = threads_.emplace(threads_.end());
  try {
    *self = std::thread([this, self] { work(self); });
    return true;
  } catch (const std::system_error& e) {
    threads_.erase(self);
    log::error(std::string("no thread for another connection: ") + e.what());
    return false;
  }
}

void ConnectionPool::enqueue(std::function<void()> job) {
  std::list<std::thread> ended;
  {
    const std::lock_guard hold(mutex_);
    ended.swap(ended_);
    jobs_.push_back(std::move(job));
    // Where no thread can be started, the job waits for one of those there are.
    if (jobs_.size() > idle_ && threads_.size() < most_ && !start_thread() && threads_.empty()) jobs_.pop_back();
  }
  arrived_.notify_one();
  for (std::thread& thread : ended) thread.join();
}

void ConnectionPool::work(Thread self) {
  std::unique_lock hold(mutex_);
  for (;;) {
    ++idle_;
    arrived_.wait_for(hold, std::chrono::minutes(1), [this] { return !jobs_.empty() || ending_; });
    --idle_;
    if (jobs_.empty()) break;
    {
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      hold.unlock();
      within_border("a connection", job);
    }
    hold.lock();
  }
  ended_.splice(ended_.end(), threads_, self);
  left_.notify_all();
}

void ConnectionPool::shutdown() {
  std::unique_lock hold(mutex_);
  ending_ = true;
  arrived_.notify_all();
  left_.wait(hold, [this] { return threads_.empty(); });
  std::list<std::thread> ended = std::move(ended_);
  hold.unlock();
  for (std::thread& thread : ended) thread.join();
}

std::shared_ptr<void> Places::take() {
  std::unique_lock hold(mutex_);
  freed_.wait(hold, [this] { return free_ > 0; });
  --free_;
  return {nullptr, [this](void*) {
            {
              const std::lock_guard free(mutex_);
              ++free_;
            }
            freed_.notify_one();
          }};
}

}  // namespace lathe::http
