// For tests: torch's allocator of CPU memory, watched. What was allocated before is not counted.
//
// Threads: any may allocate; one watch at a time.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace lathe::weights {

class MemoryWatch final : public at::Allocator {
 public:
  MemoryWatch() : inner_(at::GetCPUAllocator()) {
    held_ = peak_ = largest_ = 0;
    c10::SetCPUAllocator(this, 100);
  }
  ~MemoryWatch() override { c10::SetCPUAllocator(inner_, 100); }

  at::DataPtr allocate(size_t n) override {
    raise(largest_, n);
    raise(peak_, held_ += n);
    // The size is stored before the memory, so that whoever frees it, even later, can find it.
    auto* block = static_cast<char*>(std::aligned_alloc(kAlign, (n + 2 * kAlign - 1) / kAlign * kAlign));
    std::memcpy(block, &n, sizeof(n));
    return {block + kAlign, block + kAlign, &release, at::Device(at::kCPU)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }

  static size_t largest() { return largest_; }  // one allocation
  static size_t peak() { return peak_; }        // of all together

 private:
  static constexpr size_t kAlign = 64;

  static void release(void* memory) {
    if (!memory) return;
    char* block = static_cast<char*>(memory) - kAlign;
    size_t n = 0;
    std::memcpy(&n, block, sizeof(n));
    held_ -= n;
    std::free(block);
  }
  static void raise(std::atomic<size_t>& value, size_t to) {
    size_t seen = value.load();
    while (to > seen && !value.compare_exchange_weak(seen, to)) {
    }
  }

  at::Allocator* inner_;
  static inline std::atomic<size_t> held_ = 0, peak_ = 0, largest_ = 0;
};

// Fails one allocation: throws `error` at the n-th after arm(n).
class MemoryFault final : public at::Allocator {
 public:
  MemoryFault() : inner_(at::GetCPUAllocator()) { c10::SetCPUAllocator(this, 100); }
  ~MemoryFault() override { c10::SetCPUAllocator(inner_, 100); }

  void arm(int64_t n) { left_ = n; }
  // Whether the fault happened since arm().
  bool disarm() { return left_.exchange(0) <= 0; }

  at::DataPtr allocate(size_t n) override {
    if (left_.load() > 0 && left_.fetch_sub(1) == 1) throw std::bad_alloc();
    return inner_->allocate(n);
  }
  at::DeleterFnPtr raw_deleter() const override { return inner_->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }

 private:
  at::Allocator* inner_;
  std::atomic<int64_t> left_ = 0;
};

}  // namespace lathe::weights
