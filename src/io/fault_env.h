// FaultEnv: a file system in memory that knows what a crash may leave, and fails when told to.
//
// Why: an ordering that is almost right works every time except when the power fails. Here every outcome that POSIX
// allows can be produced, and reproduced from the same choices.
//
// The model. Reads see everything that was written. Less than that is durable:
//   * File contents: what sync() covered. Of each later write the disk may hold nothing, all, a prefix, any of its
//     512-byte sectors, or zeros by which the file grew. Writes are independent of each other.
//   * Names: what sync_directory() covered. Each creation, link, removal and rename since may be lost or kept, in any
//     combination; a rename is one step. A rename between directories is durable once both are synced.
//   * After a failed sync() the state of its writes stays unknown: they can be read, but a later sync() does not help;
//     writing the same bytes again and syncing does.
// Threads: any, under one lock. Numbered operations must come from one thread, or their numbers are not reproducible.
// Memory: copies share everything until one of them changes it.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <random>

#include "io/env.h"

namespace lathe::io {

// Decides what a crash leaves.
class Choices {
 public:
  virtual ~Choices() = default;
  virtual uint32_t below(uint32_t n) = 0;
};

class RandomChoices final : public Choices {
 public:
  explicit RandomChoices(uint64_t seed) : random_(seed) {}
  uint32_t below(uint32_t n) override { return static_cast<uint32_t>(random_() % n); }

 private:
  std::mt19937_64 random_;
};

// All sequences of choices, one after another: `do { ... } while (choices.advance());`
class AllChoices final : public Choices {
 public:
  uint32_t below(uint32_t n) override;
  bool advance();  // false when all have been seen

 private:
  struct Digit {
    uint32_t value, n;
  };
  std::vector<Digit> digits_;
  size_t at_ = 0;
};

// What goes wrong. Operations that change something are numbered from 1: create, append, write_at, sync, close, rename,
// link, symlink, remove, remove_directory, create_directories, sync_directory.
struct Fault {
  enum class Kind {
    kNone,
    kCrash,     // the operation and all after it fail and do nothing, but for `part`
    kOnce,      // one operation fails
    kFrom,      // it and all after it fail
    kRead,      // the at-th read (open_read, read_at, map, list) fails; writes are not counted
    kReadFrom,  // it and all reads after it fail
  };
  Kind kind = Kind::kNone;
  int64_t at = 0;
  int error = EIO;
  double part = 0;  // of a failing write's bytes that are written all the same
};

class FaultEnv final : public Env {
 public:
  FaultEnv();
  ~FaultEnv() override;
  FaultEnv(const FaultEnv& other);  // a snapshot; no locks, no fault
  FaultEnv& operator=(const FaultEnv&) = delete;

  void set_fault(const Fault& fault);  // and counts from 0 again
  int64_t operations() const;          // that changed something, or tried to, since set_fault
  int64_t reads() const;
  // Called before each numbered operation with its description: for snapshots and traces.
  void set_observer(std::function<void(int64_t number, const std::string& what)> observer);
  void set_capacity(uint64_t bytes);  // of all contents; beyond, ENOSPC after what fits. Default: unlimited

  // The process died: everything is as it was read, locks are free.
  std::unique_ptr<FaultEnv> after_kill() const;
  // The power failed: what was not synced is as `choices` say.
  std::unique_ptr<FaultEnv> after_power_loss(Choices& choices) const;
  // Everything written so far is durable: where a test begins.
  void make_durable();
  // The writes and names that after_power_loss would choose about.
  size_t pending() const;
  // All that can be read, as one string: disks with the same image are the same to every reader.
  std::string image() const;
  // Flips bits without any operation: media damage.
  void damage(const std::string& path, uint64_t offset, std::byte mask);

  Result<std::unique_ptr<RandomAccessFile>> open_read(const std::string& path) override;
  Result<std::unique_ptr<MappedFile>> map(const std::string& path) override;
  Result<std::unique_ptr<WritableFile>> create(const std::string& path) override;
  Result<std::unique_ptr<InPlaceFile>> open_in_place(const std::string& path) override;
  Status rename(const std::string& from, const std::string& to) override;
  Status link(const std::string& existing, const std::string& name) override;
  Status symlink(const std::string& target, const std::string& name) override;
  Result<std::string> read_link(const std::string& path) override;
  Status remove(const std::string& path) override;
  Status remove_directory(const std::string& path) override;
  Status create_directories(const std::string& path) override;
  Status sync_directory(const std::string& path) override;
  Result<FileStat> stat(const std::string& path) override;
  Result<std::vector<std::string>> list(const std::string& directory) override;
  Result<uint64_t> free_space(const std::string& path) override;
  Result<std::unique_ptr<FileLock>> lock(const std::string& path, IfLocked if_locked) override;

 private:
  struct State;
  class Reader;
  class Mapping;
  class Writer;
  class InPlace;
  class Lock;

  struct Verdict {
    Status status;
    double part = 1;  // of the bytes to write
  };
  Verdict begin(const std::string& what);
  Status begin_read(const std::string& what);
  Status write(uint64_t inode, uint64_t offset, std::span<const std::byte> bytes, const std::string& what);
  Status sync(uint64_t inode, const std::string& what);

  mutable std::mutex mutex_;  // guards everything below
  std::unique_ptr<State> state_;
  Fault fault_;
  int64_t operations_ = 0;
  std::atomic<int64_t> reads_ = 0;  // read without the lock, so that an observer may
  bool failing_ = false;
  std::function<void(int64_t, const std::string&)> observer_;
};

}  // namespace lathe::io
