#include "io/fault_env.h"

#include <algorithm>
#include <limits>
#include <set>

#include "io/fault_disk.h"

namespace lathe::io {

using Inode = FaultDisk::Inode;
using Kind = FaultDisk::Kind;

struct FaultEnv::State {
  FaultDisk disk;
  uint64_t capacity = std::numeric_limits<uint64_t>::max();
  std::set<Inode> locked;
};

uint32_t AllChoices::below(uint32_t n) {
  if (at_ == digits_.size()) digits_.push_back({0, n});
  LATHE_CHECK(digits_[at_].n == n);
  return digits_[at_++].value;
}

bool AllChoices::advance() {
  at_ = 0;
  while (!digits_.empty() && digits_.back().value + 1 == digits_.back().n) digits_.pop_back();
  if (digits_.empty()) return false;
  ++digits_.back().value;
  return true;
}

class FaultEnv::Reader final : public RandomAccessFile {
 public:
  Reader(FaultEnv& env, Inode file, std::string path) : env_(env), file_(file), path_(std::move(path)) {
    size_ = env_.state_->disk.contents(file_)->size();
  }
  uint64_t size() const override { return size_; }
  Status read_at(uint64_t offset, std::span<std::byte> out) const override {
    const std::lock_guard hold(env_.mutex_);
    LATHE_TRY(env_.begin_read("read " + path_));
    const std::string& bytes = *env_.state_->disk.contents(file_);
    if (offset > bytes.size() || out.size() > bytes.size() - offset) {
      return corruption(path_ + " is truncated: it ends at byte " + std::to_string(bytes.size()));
    }
    bytes.copy(reinterpret_cast<char*>(out.data()), out.size(), offset);  // nothing, to nowhere, is no error
    return {};
  }

 private:
  FaultEnv& env_;
  Inode file_;
  std::string path_;
  uint64_t size_;
};

class FaultEnv::Mapping final : public MappedFile {
 public:
  explicit Mapping(std::shared_ptr<const std::string> contents) : contents_(std::move(contents)) {}
  std::span<const std::byte> bytes() const override { return std::as_bytes(std::span(*contents_)); }

 private:
  std::shared_ptr<const std::string> contents_;
};

class FaultEnv::Writer final : public WritableFile {
 public:
  Writer(FaultEnv& env, Inode file, std::string path) : env_(env), file_(file), path_(std::move(path)) {}
  Status append(std::span<const std::byte> bytes) override {
    const std::lock_guard hold(env_.mutex_);
    const Status written = env_.write(file_, end_, bytes, "append " + path_);
    end_ = env_.state_->disk.contents(file_)->size();
    return written;
  }
  Status sync() override {
    const std::lock_guard hold(env_.mutex_);
    return env_.sync(file_, "sync " + path_);
  }
  Status close() override {
    const std::lock_guard hold(env_.mutex_);
    return env_.begin("close " + path_).status;
  }

 private:
  FaultEnv& env_;
  Inode file_;
  std::string path_;
  uint64_t end_ = 0;
};

class FaultEnv::InPlace final : public InPlaceFile {
 public:
  InPlace(FaultEnv& env, Inode file, std::string path) : env_(env), file_(file), path_(std::move(path)) {}
  Status write_at(uint64_t offset, std::span<const std::byte> bytes) override {
    const std::lock_guard hold(env_.mutex_);
    const uint64_t size = env_.state_->disk.contents(file_)->size();
    if (offset > size || bytes.size() > size - offset) return internal("a write beyond the end of " + path_);
    return env_.write(file_, offset, bytes, "write_at " + path_);
  }
  Status sync() override {
    const std::lock_guard hold(env_.mutex_);
    return env_.sync(file_, "sync " + path_);
  }

 private:
  FaultEnv& env_;
  Inode file_;
  std::string path_;
};

class FaultEnv::Lock final : public FileLock {
 public:
  Lock(FaultEnv& env, Inode file) : env_(env), file_(file) {}
  ~Lock() override {
    const std::lock_guard hold(env_.mutex_);
    env_.state_->locked.erase(file_);
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  FaultEnv& env_;
  Inode file_;
};

FaultEnv::FaultEnv() : state_(std::make_unique<State>()) {}
FaultEnv::~FaultEnv() = default;
FaultEnv::FaultEnv(const FaultEnv& other) : Env() {
  const std::lock_guard hold(other.mutex_);
  state_ = std::make_unique<State>(*other.state_);
  state_->locked.clear();
}

void FaultEnv::set_fault(const Fault& fault) {
  const std::lock_guard hold(mutex_);
  fault_ = fault;
  operations_ = 0;
  reads_ = 0;
  failing_ = false;
}

int64_t FaultEnv::operations() const {
  const std::lock_guard hold(mutex_);
  return operations_;
}

int64_t FaultEnv::reads() const {
  return reads_;
}

void FaultEnv::set_observer(std::function<void(int64_t, const std::string&)> observer) {
  const std::lock_guard hold(mutex_);
  observer_ = std::move(observer);
}

void FaultEnv::set_capacity(uint64_t bytes) {
  const std::lock_guard hold(mutex_);
  state_->capacity = bytes;
}

std::unique_ptr<FaultEnv> FaultEnv::after_kill() const {
  return std::make_unique<FaultEnv>(*this);
}

std::unique_ptr<FaultEnv> FaultEnv::after_power_loss(Choices& choices) const {
  auto env = std::make_unique<FaultEnv>();
  const std::lock_guard hold(mutex_);
  env->state_->disk = state_->disk.after_power_loss(choices);
  env->state_->capacity = state_->capacity;
  return env;
}

void FaultEnv::make_durable() {
  const std::lock_guard hold(mutex_);
  state_->disk.make_durable();
}

size_t FaultEnv::pending() const {
  const std::lock_guard hold(mutex_);
  return state_->disk.pending();
}

std::string FaultEnv::image() const {
  const std::lock_guard hold(mutex_);
  return state_->disk.image();
}

void FaultEnv::damage(const std::string& path, uint64_t offset, std::byte mask) {
  const std::lock_guard hold(mutex_);
  state_->disk.damage(state_->disk.find(path).value(), offset, mask);
}

FaultEnv::Verdict FaultEnv::begin(const std::string& what) {
  ++operations_;
  if (observer_) observer_(operations_, what);
  const bool reads = fault_.kind == Fault::Kind::kRead || fault_.kind == Fault::Kind::kReadFrom;
  const bool hit = fault_.kind != Fault::Kind::kNone && !reads && operations_ == fault_.at;
  if (!hit && !failing_) return {};
  if (hit && fault_.kind != Fault::Kind::kOnce) failing_ = true;
  return {.status = io_error("injected: " + what, fault_.error), .part = hit ? fault_.part : 0};
}

Status FaultEnv::begin_read(const std::string& what) {
  ++reads_;
  const bool fails = fault_.kind == Fault::Kind::kRead       ? reads_ == fault_.at
                     : fault_.kind == Fault::Kind::kReadFrom ? reads_ >= fault_.at
                                                             : failing_ && fault_.kind == Fault::Kind::kCrash;
  return fails ? Status(io_error("injected: " + what, fault_.error)) : Status();
}

Status FaultEnv::write(Inode file, uint64_t offset, std::span<const std::byte> bytes, const std::string& what) {
  const Verdict verdict = begin(what);
  FaultDisk& disk = state_->disk;
  if (!verdict.status.ok()) {
    disk.write(file, offset, bytes.first(static_cast<size_t>(verdict.part * static_cast<double>(bytes.size()))));
    return verdict.status;
  }
  const uint64_t size = disk.contents(file)->size(), end = offset + bytes.size();
  if (end > size && state_->capacity != std::numeric_limits<uint64_t>::max()) {
    const uint64_t used = disk.used(), free = state_->capacity > used ? state_->capacity - used : 0;
    if (end - size > free) {
      disk.write(file, offset, bytes.first(size - offset + free));
      return io_error("cannot write: " + what, ENOSPC);
    }
  }
  disk.write(file, offset, bytes);
  return {};
}

Status FaultEnv::sync(Inode file, const std::string& what) {
  const Verdict verdict = begin(what);
  if (verdict.status.ok()) {
    state_->disk.sync(file);
  } else if (fault_.kind != Fault::Kind::kCrash) {
    state_->disk.fail_sync(file);
  }
  return verdict.status;
}

Result<std::unique_ptr<RandomAccessFile>> FaultEnv::open_read(const std::string& path) {
  const std::lock_guard hold(mutex_);
  LATHE_TRY(begin_read("open " + path));
  const Inode file = LATHE_TRY(state_->disk.find(path));
  if (state_->disk.kind(file) != Kind::kFile) return io_error("cannot open " + path, EISDIR);
  return std::unique_ptr<RandomAccessFile>(std::make_unique<Reader>(*this, file, path));
}

Result<std::unique_ptr<MappedFile>> FaultEnv::map(const std::string& path) {
  const std::lock_guard hold(mutex_);
  LATHE_TRY(begin_read("map " + path));
  const Inode file = LATHE_TRY(state_->disk.find(path));
  if (state_->disk.kind(file) != Kind::kFile) return io_error("cannot map " + path, EISDIR);
  return std::unique_ptr<MappedFile>(std::make_unique<Mapping>(state_->disk.contents(file)));
}

Result<std::unique_ptr<WritableFile>> FaultEnv::create(const std::string& path) {
  const std::lock_guard hold(mutex_);
  LATHE_TRY(begin("create " + path).status);
  const Inode file = LATHE_TRY(state_->disk.create(path));
  return std::unique_ptr<WritableFile>(std::make_unique<Writer>(*this, file, path));
}

Result<std::unique_ptr<InPlaceFile>> FaultEnv::open_in_place(const std::string& path) {
  const std::lock_guard hold(mutex_);
  LATHE_TRY(begin_read("open " + path));
  const Inode file = LATHE_TRY(state_->disk.find(path));
  if (state_->disk.kind(file) != Kind::kFile) return io_error("cannot open " + path, EISDIR);
  return std::unique_ptr<InPlaceFile>(std::make_unique<InPlace>(*this, file, path));
}

Status FaultEnv::rename(const std::string& from, const std::string& to) {
  const std::lock_guard hold(mutex_);
  LATHE_TRY(begin("rename " + from + " to " + to).status);
  return state_->disk.rename(from, to);
}

Status FaultEnv::link(const std::string& existing, const std::string& name) {
  const std::lock_guard hold(mutex_);
  LATHE_TRY(begin("link " + existing + " as " + name).status);
  return state_->disk.link(existing, name);
}

Status FaultEnv::symlink(const std::string& target, const std::string& name) {
  const std::lock_guard hold(mutex_);
  LATHE_TRY(begin("symlink " + name).status);
  return state_->disk.make(name, Kind::kLink, target);
}

Result<std::string> FaultEnv::read_link(const std::string& path) {
  const std::lock_guard hold(mutex_);
  const Inode link = LATHE_TRY(state_->disk.find(path, /*follow=*/false));
  if (state_->disk.kind(link) != Kind::kLink) return io_error("cannot read the symbolic link " + path, EINVAL);
  return state_->disk.target(link);
}

Status FaultEnv::remove(const std::string& path) {
  const std::lock_guard hold(mutex_);
  LATHE_TRY(begin("remove " + path).status);
  return state_->disk.remove(path, /*directory=*/false);
}

Status FaultEnv::remove_directory(const std::string& path) {
  const std::lock_guard hold(mutex_);
  LATHE_TRY(begin("remove_directory " + path).status);
  return state_->disk.remove(path, /*directory=*/true);
}

Status FaultEnv::create_directories(const std::string& path) {
  const std::lock_guard hold(mutex_);
  LATHE_TRY(begin("create_directories " + path).status);
  FaultDisk& disk = state_->disk;
  for (size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string part = path.substr(0, end);
    const auto found = disk.find(part);
    if (!found.ok()) {
      LATHE_TRY(disk.make(part, Kind::kDirectory, ""));
    } else if (disk.kind(*found) != Kind::kDirectory) {
      return io_error("cannot create directory " + path, ENOTDIR);
    }
    if (end == std::string::npos) return {};
  }
}

Status FaultEnv::sync_directory(const std::string& path) {
  const std::lock_guard hold(mutex_);
  LATHE_TRY(begin("sync_directory " + path).status);
  const Inode directory = LATHE_TRY(state_->disk.find(path));
  if (state_->disk.kind(directory) != Kind::kDirectory) return io_error("cannot open " + path, ENOTDIR);
  state_->disk.sync_names(directory);
  return {};
}

Result<FileStat> FaultEnv::stat(const std::string& path) {
  const std::lock_guard hold(mutex_);
  const FaultDisk& disk = state_->disk;
  const Inode name = LATHE_TRY(disk.find(path, /*follow=*/false));
  const auto followed = disk.find(path);
  const Inode node = followed.ok() ? *followed : name;
  return FileStat{.size = disk.kind(node) == Kind::kFile ? disk.contents(node)->size() : 0,
                  .is_directory = disk.kind(node) == Kind::kDirectory,
                  .is_symlink = disk.kind(name) == Kind::kLink,
                  .links = disk.links(node)};
}

Result<std::vector<std::string>> FaultEnv::list(const std::string& path) {
  const std::lock_guard hold(mutex_);
  LATHE_TRY(begin_read("list " + path));
  const Inode directory = LATHE_TRY(state_->disk.find(path));
  if (state_->disk.kind(directory) != Kind::kDirectory) return io_error("cannot list " + path, ENOTDIR);
  std::vector<std::string> names;
  for (const auto& [name, node] : state_->disk.names(directory)) names.push_back(name);
  return names;
}

Result<uint64_t> FaultEnv::free_space(const std::string&) {
  const std::lock_guard hold(mutex_);
  const uint64_t used = state_->disk.used();
  return state_->capacity > used ? state_->capacity - used : 0;
}

Result<std::unique_ptr<FileLock>> FaultEnv::lock(const std::string& path, IfLocked) {
  const std::lock_guard hold(mutex_);
  const auto found = state_->disk.find(path);
  const Inode file = found.ok() ? *found : LATHE_TRY(state_->disk.create(path));
  if (!state_->locked.insert(file).second) {
    return Error{Code::kConflict, path + " is locked by another process", EWOULDBLOCK};
  }
  return std::unique_ptr<FileLock>(std::make_unique<Lock>(*this, file));
}

}  // namespace lathe::io
