// Gate: a reader-writer lock for the weights, with priority for the writer.
//
// Readers (decode steps, prefill chunks) share the gate; a commit holds it exclusively. A waiting writer stops new
// readers, so that a busy server cannot starve a commit; std::shared_mutex does not promise that. A reader must
// therefore never take the gate twice.
//
// Threads: any. The teaching thread is the only writer, so it reads the weights for a proposal without the gate.
#pragma once

#include <condition_variable>
#include <mutex>

namespace lathe::weights {

class Gate {
 public:
  class Shared {
   public:
    explicit Shared(Gate& gate) : gate_(gate) { gate_.lock_shared(); }
    ~Shared() { gate_.unlock_shared(); }
    Shared(const Shared&) = delete;
    Shared& operator=(const Shared&) = delete;

   private:
    Gate& gate_;
  };
  class Exclusive {
   public:
    explicit Exclusive(Gate& gate) : gate_(gate) { gate_.lock(); }
    ~Exclusive() { gate_.unlock(); }
    Exclusive(const Exclusive&) = delete;
    Exclusive& operator=(const Exclusive&) = delete;

   private:
    Gate& gate_;
  };

 private:
  void lock_shared() {
    std::unique_lock hold(mutex_);
    changed_.wait(hold, [&] { return !writing_ && writers_waiting_ == 0; });
    ++readers_;
  }
  void unlock_shared() {
    const std::lock_guard hold(mutex_);
    if (--readers_ == 0) changed_.notify_all();
  }
  void lock() {
    std::unique_lock hold(mutex_);
    ++writers_waiting_;
    changed_.wait(hold, [&] { return !writing_ && readers_ == 0; });
    --writers_waiting_;
    writing_ = true;
  }
  void unlock() {
    const std::lock_guard hold(mutex_);
    writing_ = false;
    changed_.notify_all();
  }

  std::mutex mutex_;  // guards everything below
  std::condition_variable changed_;
  int readers_ = 0;
  int writers_waiting_ = 0;
  bool writing_ = false;
};

}  // namespace lathe::weights
