#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "io/env.h"

namespace lathe::io {
namespace {

Error failed(const char* what, const std::string& path) {
  const int native = errno;
  Error error = io_error(std::string("cannot ") + what + " " + path, native);
  if (native == ENOENT) error.code = Code::kNotFound;
  return error;
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor& operator=(Descriptor&&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

Result<Descriptor> open_file(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  if (fd < 0) return failed("open", path);
  return Descriptor(fd);
}

// A file that may only be read can be locked all the same.
Result<Descriptor> open_to_lock(const std::string& path) {
  Result<Descriptor> opened = open_file(path, O_RDWR | O_CREAT);
  const bool read_only = !opened.ok() && (opened.error().native == EACCES || opened.error().native == EROFS);
  return read_only ? open_file(path, O_RDONLY) : std::move(opened);
}

class PosixMappedFile final : public MappedFile {
 public:
  PosixMappedFile(void* data, size_t size) : data_(data), size_(size) {}
  ~PosixMappedFile() override {
    if (size_ > 0) ::munmap(data_, size_);
  }
  PosixMappedFile(const PosixMappedFile&) = delete;
  PosixMappedFile& operator=(const PosixMappedFile&) = delete;
  std::span<const std::byte> bytes() const override { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  void* data_;
  size_t size_;
};

class PosixRandomAccessFile final : public RandomAccessFile {
 public:
  PosixRandomAccessFile(Descriptor fd, std::string path, uint64_t size)
      : fd_(std::move(fd)), path_(std::move(path)), size_(size) {}
  uint64_t size() const override { return size_; }
  Status read_at(uint64_t offset, std::span<std::byte> out) const override {
    while (!out.empty()) {
      const ssize_t n = ::pread(fd_.get(), out.data(), out.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return failed("read", path_);
      if (n == 0) return corruption(path_ + " is truncated: it ends at byte " + std::to_string(offset));
      out = out.subspan(static_cast<size_t>(n));
      offset += static_cast<uint64_t>(n);
    }
    return {};
  }

 private:
  Descriptor fd_;
  std::string path_;
  uint64_t size_;
};

class PosixWritableFile final : public WritableFile {
 public:
  PosixWritableFile(Descriptor fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  Status append(std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t n = ::write(fd_.get(), bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return failed("write", path_);
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
    return {};
  }
  Status sync() override { return ::fdatasync(fd_.get()) == 0 ? Status() : Status(failed("sync", path_)); }
  Status close() override { return ::close(fd_.release()) == 0 ? Status() : Status(failed("close", path_)); }

 private:
  Descriptor fd_;
  std::string path_;
};

class PosixInPlaceFile final : public InPlaceFile {
 public:
  PosixInPlaceFile(Descriptor fd, std::string path, uint64_t size)
      : fd_(std::move(fd)), path_(std::move(path)), size_(size) {}
  Status write_at(uint64_t offset, std::span<const std::byte> bytes) override {
    if (offset > size_ || bytes.size() > size_ - offset) return internal("a write beyond the end of " + path_);
    while (!bytes.empty()) {
      const ssize_t n = ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return failed("write", path_);
      bytes = bytes.subspan(static_cast<size_t>(n));
      offset += static_cast<uint64_t>(n);
    }
    return {};
  }
  Status sync() override { return ::fdatasync(fd_.get()) == 0 ? Status() : Status(failed("sync", path_)); }

 private:
  Descriptor fd_;
  std::string path_;
  uint64_t size_;
};

class PosixFileLock final : public FileLock {
 public:
  explicit PosixFileLock(Descriptor fd) : fd_(std::move(fd)) {}

 private:
  Descriptor fd_;  // closing it releases the lock
};

class PosixEnv final : public Env {
 public:
  Result<std::unique_ptr<RandomAccessFile>> open_read(const std::string& path) override {
    Descriptor fd = LATHE_TRY(open_file(path, O_RDONLY));
    struct ::stat info {};
    if (::fstat(fd.get(), &info) != 0) return failed("stat", path);
    return std::unique_ptr<RandomAccessFile>(
        std::make_unique<PosixRandomAccessFile>(std::move(fd), path, static_cast<uint64_t>(info.st_size)));
  }

  Result<std::unique_ptr<MappedFile>> map(const std::string& path) override {
    const Descriptor fd = LATHE_TRY(open_file(path, O_RDONLY));
    struct ::stat info {};
    if (::fstat(fd.get(), &info) != 0) return failed("stat", path);
    const auto size = static_cast<size_t>(info.st_size);
    void* data = nullptr;
    if (size > 0) {
      data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
      if (data == MAP_FAILED) return failed("map", path);
    }
    return std::unique_ptr<MappedFile>(std::make_unique<PosixMappedFile>(data, size));
  }

  Result<std::unique_ptr<WritableFile>> create(const std::string& path) override {
    Descriptor fd = LATHE_TRY(open_file(path, O_WRONLY | O_CREAT | O_TRUNC));
    return std::unique_ptr<WritableFile>(std::make_unique<PosixWritableFile>(std::move(fd), path));
  }

  Result<std::unique_ptr<InPlaceFile>> open_in_place(const std::string& path) override {
    Descriptor fd = LATHE_TRY(open_file(path, O_WRONLY));
    struct ::stat info {};
    if (::fstat(fd.get(), &info) != 0) return failed("stat", path);
    return std::unique_ptr<InPlaceFile>(
        std::make_unique<PosixInPlaceFile>(std::move(fd), path, static_cast<uint64_t>(info.st_size)));
  }

  Status rename(const std::string& from, const std::string& to) override {
    return ::rename(from.c_str(), to.c_str()) == 0 ? Status() : Status(failed("rename", from + " to " + to));
  }

  Status link(const std::string& existing, const std::string& name) override {
    return ::link(existing.c_str(), name.c_str()) == 0 ? Status() : Status(failed("link", existing + " as " + name));
  }

  Status symlink(const std::string& target, const std::string& name) override {
    return ::symlink(target.c_str(), name.c_str()) == 0 ? Status() : Status(failed("make the symbolic link", name));
  }

  Result<std::string> read_link(const std::string& path) override {
    std::error_code error;
    const auto target = std::filesystem::read_symlink(path, error);
    if (error) return io_error("cannot read the symbolic link " + path, error.value());
    return target.string();
  }

  Status remove(const std::string& path) override {
    return ::unlink(path.c_str()) == 0 ? Status() : Status(failed("remove", path));
  }

  Status remove_directory(const std::string& path) override {
    return ::rmdir(path.c_str()) == 0 ? Status() : Status(failed("remove directory", path));
  }

  Status create_directories(const std::string& path) override {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    return error ? Status(io_error("cannot create directory " + path, error.value())) : Status();
  }

  Status sync_directory(const std::string& path) override {
    const Descriptor fd = LATHE_TRY(open_file(path, O_RDONLY | O_DIRECTORY));
    return ::fsync(fd.get()) == 0 ? Status() : Status(failed("sync directory", path));
  }

  Result<FileStat> stat(const std::string& path) override {
    struct ::stat name {
    }, target{};
    if (::lstat(path.c_str(), &name) != 0) return failed("stat", path);
    if (::stat(path.c_str(), &target) != 0) {
      if (!S_ISLNK(name.st_mode) || errno != ENOENT) return failed("stat", path);
      target = name;  // a link to nothing is itself still there
    }
    return FileStat{.size = static_cast<uint64_t>(target.st_size),
                    .is_directory = S_ISDIR(target.st_mode),
                    .is_symlink = S_ISLNK(name.st_mode),
                    .links = static_cast<uint64_t>(target.st_nlink)};
  }

  Result<std::vector<std::string>> list(const std::string& directory) override {
    std::vector<std::string> names;
    std::error_code error;
    for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
      names.push_back(it->path().filename().string());
    }
    if (error) return io_error("cannot list " + directory, error.value());
    std::sort(names.begin(), names.end());
    return names;
  }

  Result<uint64_t> free_space(const std::string& path) override {
    struct ::statvfs info {};
    if (::statvfs(path.c_str(), &info) != 0) return failed("ask for the free space at", path);
    return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  }

  Result<std::unique_ptr<FileLock>> lock(const std::string& path, IfLocked if_locked) override {
    Descriptor fd = LATHE_TRY(open_to_lock(path));
    const int mode = LOCK_EX | (if_locked == IfLocked::kFail ? LOCK_NB : 0);
    int locked = 0;
    do {
      locked = ::flock(fd.get(), mode);
    } while (locked != 0 && errno == EINTR);
    if (locked != 0) {
      if (errno == EWOULDBLOCK) return Error{Code::kConflict, path + " is locked by another process", EWOULDBLOCK};
      return failed("lock", path);
    }
    return std::unique_ptr<FileLock>(std::make_unique<PosixFileLock>(std::move(fd)));
  }
};

}  // namespace

Env& posix_env() {
  static PosixEnv env;
  return env;
}

}  // namespace lathe::io
