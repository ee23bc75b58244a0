// Env: every file operation of Lathe goes through here, so that tests can make the file system fail.
//
// Why: a checkpoint that is almost always safe is not safe; the fault-injecting twin (fault_env.h) replays every
// operation boundary. Names follow POSIX.
// Threads: any; a WritableFile belongs to one thread at a time.
// Durability: said per function. After a failed sync() a file's contents are unknown: never sync again, write a new
// file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lathe::io {

// A file mapped read-only. The bytes live as long as this object; they do not follow later replacement of the file.
class MappedFile {
 public:
  virtual ~MappedFile() = default;
  virtual std::span<const std::byte> bytes() const = 0;
};

class RandomAccessFile {
 public:
  virtual ~RandomAccessFile() = default;
  virtual uint64_t size() const = 0;
  // Fills all of `out` or fails; reading past the end is kCorruption ("truncated").
  virtual Status read_at(uint64_t offset, std::span<std::byte> out) const = 0;
};

class WritableFile {
 public:
  virtual ~WritableFile() = default;  // closes; errors are lost, so call close()
  virtual Status append(std::span<const std::byte> bytes) = 0;
  // Durable on return: contents and size (fdatasync).
  virtual Status sync() = 0;
  virtual Status close() = 0;
};

// An existing file, written in place. Its size does not change.
class InPlaceFile {
 public:
  virtual ~InPlaceFile() = default;  // closes
  // Not atomic: a crash may leave any part of the bytes, in pieces of a sector. Refuses to write past the end.
  virtual Status write_at(uint64_t offset, std::span<const std::byte> bytes) = 0;
  // Durable on return: every byte of the file, whoever wrote it (fdatasync).
  virtual Status sync() = 0;
};

// An advisory lock on a file, released by destruction or by the end of the process.
class FileLock {
 public:
  virtual ~FileLock() = default;
};

enum class IfLocked { kFail, kWait };

struct FileStat {
  uint64_t size = 0;
  bool is_directory = false;
  bool is_symlink = false;  // of the name itself; size and is_directory are those of what it points to
  uint64_t links = 1;
};

class Env {
 public:
  virtual ~Env() = default;

  virtual Result<std::unique_ptr<RandomAccessFile>> open_read(const std::string& path) = 0;
  virtual Result<std::unique_ptr<MappedFile>> map(const std::string& path) = 0;
  virtual Result<std::unique_ptr<WritableFile>> create(const std::string& path) = 0;  // truncates
  virtual Result<std::unique_ptr<InPlaceFile>> open_in_place(const std::string& path) = 0;
  // Atomic; replaces `to`, also a symbolic link. Durable after sync_directory of both parents.
  virtual Status rename(const std::string& from, const std::string& to) = 0;
  virtual Status link(const std::string& existing, const std::string& name) = 0;
  virtual Status symlink(const std::string& target, const std::string& name) = 0;
  virtual Result<std::string> read_link(const std::string& path) = 0;
  virtual Status remove(const std::string& path) = 0;            // not a directory
  virtual Status remove_directory(const std::string& path) = 0;  // an empty one
  virtual Status create_directories(const std::string& path) = 0;
  virtual Status sync_directory(const std::string& path) = 0;
  virtual Result<FileStat> stat(const std::string& path) = 0;                       // kNotFound if there is nothing
  virtual Result<std::vector<std::string>> list(const std::string& directory) = 0;  // names, sorted
  virtual Result<uint64_t> free_space(const std::string& path) = 0;
  // Creates the file; one that is there can be locked without write access too. If another process holds the lock:
  // kConflict, or waits for it.
  virtual Result<std::unique_ptr<FileLock>> lock(const std::string& path, IfLocked if_locked) = 0;

  Result<bool> exists(const std::string& path);
};

// The real file system. Lives as long as the program.
Env& posix_env();

Result<std::string> read_text(Env& env, const std::string& path);

// Durable on return, also if the directory was there: whoever made it may have died before it was durable.
Status create_directory_durably(Env& env, const std::string& path);

// Removes a file; none there is fine.
Status remove_if_there(Env& env, const std::string& path);
// Removes a directory and all in it, without following links; none there is fine.
Status remove_tree(Env& env, const std::string& path);

// Copies a file's contents to the new file `to`, replacing it; links are followed. Contents are durable, the name is
// not. On failure there is no `to`.
Status copy_file(Env& env, const std::string& from, const std::string& to);

// The directory that holds `path`; "." for a plain name.
std::string parent_directory(const std::string& path);

// Replaces `path` with `text`: temporary file, sync, rename, directory sync. Durable and all-or-nothing on return.
// On failure the old file is whole, and the temporary one (PATH.lathe-new) is removed if that can be.
Status write_text_atomically(Env& env, const std::string& path, std::string_view text);

}  // namespace lathe::io
