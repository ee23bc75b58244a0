#include "checkpoint/sync.h"

#include <functional>

#include "checkpoint/test_dir.h"

namespace lathe::checkpoint {
namespace {

// The real file system until operation `limit`; from then on every operation fails, as after a crash or on a dead disk.
class StoppingEnv final : public io::Env {
 public:
  StoppingEnv(int limit, int error) : limit_(limit), error_(error) {}
  int operations() const { return count_; }

  Result<std::unique_ptr<io::RandomAccessFile>> open_read(const std::string& p) override { return real_.open_read(p); }
  Result<std::unique_ptr<io::MappedFile>> map(const std::string& p) override { return real_.map(p); }
  Result<io::FileStat> stat(const std::string& p) override { return real_.stat(p); }
  Result<std::vector<std::string>> list(const std::string& p) override { return real_.list(p); }
  Result<uint64_t> free_space(const std::string& p) override { return real_.free_space(p); }
  Result<std::unique_ptr<io::FileLock>> lock(const std::string& p, io::IfLocked w) override { return real_.lock(p, w); }
  Result<std::unique_ptr<io::InPlaceFile>> open_in_place(const std::string& p) override {
    return real_.open_in_place(p);
  }
  Result<std::string> read_link(const std::string& p) override { return real_.read_link(p); }
  Status symlink(const std::string& a, const std::string& b) override { return real_.symlink(a, b); }
  Status remove_directory(const std::string& p) override { return real_.remove_directory(p); }
  Status rename(const std::string& a, const std::string& b) override {
    return step([&] { return real_.rename(a, b); });
  }
  Status link(const std::string& a, const std::string& b) override {
    return step([&] { return real_.link(a, b); });
  }
  Status remove(const std::string& p) override {
    return step([&] { return real_.remove(p); });
  }
  Status create_directories(const std::string& p) override {
    return step([&] { return real_.create_directories(p); });
  }
  Status sync_directory(const std::string& p) override {
    return step([&] { return real_.sync_directory(p); });
  }
  Result<std::unique_ptr<io::WritableFile>> create(const std::string& p) override {
    LATHE_TRY(step([] { return Status(); }));
    auto file = LATHE_TRY(real_.create(p));
    return std::unique_ptr<io::WritableFile>(std::make_unique<File>(*this, std::move(file)));
  }

 private:
  struct File final : io::WritableFile {
    File(StoppingEnv& e, std::unique_ptr<io::WritableFile> f) : env(e), file(std::move(f)) {}
    Status append(std::span<const std::byte> bytes) override {
      // A write that stops half way leaves half of its bytes.
      if (env.count_ + 1 == env.limit_) LATHE_TRY(file->append(bytes.first(bytes.size() / 2)));
      return env.step([&] { return file->append(bytes); });
    }
    Status sync() override {
      return env.step([&] { return file->sync(); });
    }
    Status close() override {
      return env.step([&] { return file->close(); });
    }
    StoppingEnv& env;
    std::unique_ptr<io::WritableFile> file;
  };

  Status step(const std::function<Status()>& work) {
    if (++count_ >= limit_) return io_error("stopped", error_);
    return work();
  }

  io::Env& real_ = io::posix_env();
  int limit_, error_, count_ = 0;
};

LiveTensor filled(char fill) {
  auto bytes = std::make_shared<std::vector<std::byte>>(100, static_cast<std::byte>(fill));
  return [bytes](std::string_view) { return std::optional<std::span<const std::byte>>(*bytes); };
}

int64_t version(const TestDir& dir) {
  return read_version(io::posix_env(), dir.path())->version;
}

bool has_litter(const TestDir& dir) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir.path())) {
    if (entry.path().string().find(".lathe-new") != std::string::npos || entry.path().filename() == "install.json")
      return true;
  }
  return false;
}

TEST(Sync, WritesChangedShardsOnlyAndKnowsItsVersion) {
  const TestDir dir;
  dir.two_shards('0');
  const auto other = std::make_shared<std::vector<std::byte>>(100, std::byte{'1'});
  const LiveTensor only_c = [&](std::string_view name) -> std::optional<std::span<const std::byte>> {
    if (name == "c") return *other;
    return std::nullopt;  // not live: stays as it is on disk
  };
  const auto report = sync(io::posix_env(), dir.path(), only_c, 7);
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->shards_written, 1);
  EXPECT_EQ(dir.contents(), "001");
  EXPECT_EQ(version(dir), 7);
  EXPECT_FALSE(has_litter(dir));
}

TEST(Sync, RollbackIsAVersionAndCanBeUndone) {
  const TestDir dir;
  dir.two_shards('0');
  io::Env& env = io::posix_env();
  EXPECT_EQ(rollback(env, dir.path()).error().code, Code::kNotFound);
  ASSERT_TRUE(sync(env, dir.path(), filled('1'), 1).ok());
  ASSERT_TRUE(sync(env, dir.path(), filled('2'), 2).ok());
  ASSERT_TRUE(rollback(env, dir.path()).ok());
  EXPECT_EQ(dir.contents(), "111");
  EXPECT_EQ(version(dir), 3);
  ASSERT_TRUE(rollback(env, dir.path()).ok());
  EXPECT_EQ(dir.contents(), "222");
  EXPECT_EQ(version(dir), 4);
}

// `act` takes the directory from `before` to `after`. It is stopped at every one of its operations in turn; recovery,
// itself stopped at every one of its own, must end in one of the two states, the version must say which, and nothing
// may be left over.
void stop_everywhere(const std::string& before, const std::string& after, int64_t version_after,
                     const std::function<void(const TestDir&)>& prepare,
                     const std::function<Status(io::Env&, const std::string&)>& act) {
  int states = 0, finished = 0;
  for (int limit = 1, done = 0; !done; ++limit) {
    for (int recovery_limit = 1, recovered = 0; !recovered; ++recovery_limit) {
      const TestDir dir;
      prepare(dir);
      StoppingEnv stopping(limit, EIO);
      done = act(stopping, dir.path()).ok();
      StoppingEnv stopping_recovery(recovery_limit, EIO);
      recovered = recover(stopping_recovery, dir.path()).ok();
      ASSERT_TRUE(recover(io::posix_env(), dir.path()).ok());
      const std::string contents = dir.contents();
      ASSERT_TRUE(contents == before || contents == after)
          << contents << " after stopping at operation " << limit << " and " << recovery_limit;
      ASSERT_EQ(version(dir) == version_after, contents == after) << "operation " << limit;
      ASSERT_FALSE(has_litter(dir)) << "operation " << limit;
      finished += contents == after;
      ++states;
    }
  }
  EXPECT_GT(finished, 0);
  EXPECT_LT(finished, states);
  std::printf("%d states, %d ended in the new version\n", states, finished);
}

TEST(Sync, StoppedAtAnyOperationTheDirectoryIsWhollyOldOrNew) {
  stop_everywhere(
      "000", "111", 1, [](const TestDir& dir) { dir.two_shards('0'); },
      [](io::Env& env, const std::string& path) -> Status {
        const auto report = sync(env, path, filled('1'), 1);
        return report.ok() ? Status() : Status(report.error());
      });
}

TEST(Sync, SoItIsWhenRollingBack) {
  const auto prepare = [](const TestDir& dir) {
    dir.two_shards('0');
    ASSERT_TRUE(sync(io::posix_env(), dir.path(), filled('1'), 1).ok());
  };
  stop_everywhere("111", "000", 2, prepare, [](io::Env& env, const std::string& path) -> Status {
    const auto report = rollback(env, path);
    return report.ok() ? Status() : Status(report.error());
  });
}

TEST(Sync, AFullDiskLeavesTheOldFilesAndNoLitter) {
  for (int limit = 2; limit < 12; ++limit) {
    const TestDir dir;
    dir.two_shards('0');
    StoppingEnv full(limit, ENOSPC);
    const auto report = sync(full, dir.path(), filled('1'), 1);
    ASSERT_FALSE(report.ok());
    EXPECT_EQ(report.error().native, ENOSPC);
    ASSERT_TRUE(recover(io::posix_env(), dir.path()).ok());
    EXPECT_EQ(dir.contents(), "000");
    EXPECT_FALSE(has_litter(dir));
  }
}

TEST(Sync, RefusesSymbolicLinks) {
  const TestDir dir;
  dir.shard("blob", {"a"}, '0');
  std::filesystem::create_symlink(dir.path() + "/blob", dir.path() + "/model.safetensors");
  const auto report = sync(io::posix_env(), dir.path(), filled('1'), 1);
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message.find("symbolic link"), std::string::npos);
  EXPECT_EQ(dir.contents(), "0");
}

TEST(Lock, OneProcessPerDirectory) {
  const TestDir dir;
  const auto first = lock_directory(io::posix_env(), dir.path());
  ASSERT_TRUE(first.ok());
  const auto second = lock_directory(io::posix_env(), dir.path());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, Code::kConflict);
}

}  // namespace
}  // namespace lathe::checkpoint
