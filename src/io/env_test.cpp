// The same laws on the real file system and on FaultEnv, then those of FaultEnv's crashes: what was synced stays, and
// everything that the model allows for the rest does occur.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <set>

#include "io/fault_env.h"

namespace lathe::io {
namespace {

std::span<const std::byte> bytes(std::string_view text) {
  return std::as_bytes(std::span(text));
}

// What is there, as one word.
std::string read(Env& env, const std::string& path) {
  const auto text = read_text(env, path);
  return text.ok() ? *text : std::string(code_name(text.error().code));
}

// Not durable.
void write(Env& env, const std::string& path, std::string_view text) {
  auto file = env.create(path);
  ASSERT_TRUE(file.ok()) << file.error().message;
  ASSERT_TRUE((*file)->append(bytes(text)).ok());
  ASSERT_TRUE((*file)->close().ok());
}

void write_synced(Env& env, const std::string& path, std::string_view text) {
  auto file = env.create(path);
  ASSERT_TRUE(file.ok()) << file.error().message;
  ASSERT_TRUE((*file)->append(bytes(text)).ok());
  ASSERT_TRUE((*file)->sync().ok());
  ASSERT_TRUE((*file)->close().ok());
}

class AnyEnv : public ::testing::TestWithParam<const char*> {
 protected:
  AnyEnv() {
    if (std::string(GetParam()) == "memory") {
      env_ = std::make_unique<FaultEnv>();
      root_ = "/test";
      EXPECT_TRUE(env_->create_directories(root_).ok());
    } else {
      root_ = (std::filesystem::temp_directory_path() / ("lathe-env-" + std::to_string(::getpid()))).string();
      std::filesystem::remove_all(root_);
      std::filesystem::create_directories(root_);
    }
  }
  ~AnyEnv() override {
    if (!env_) std::filesystem::remove_all(root_);
  }
  Env& env() { return env_ ? *env_ : posix_env(); }
  std::string at(const std::string& name) const { return root_ + "/" + name; }

 private:
  std::unique_ptr<FaultEnv> env_;
  std::string root_;
};
INSTANTIATE_TEST_SUITE_P(Envs, AnyEnv, ::testing::Values("memory", "posix"), [](const auto& env) { return env.param; });

TEST_P(AnyEnv, FilesAreCreatedReadTruncatedAndRemoved) {
  EXPECT_EQ(read(env(), at("a")), "not found");
  write(env(), at("a"), "hello");
  EXPECT_EQ(read(env(), at("a")), "hello");
  EXPECT_EQ(env().stat(at("a"))->size, 5U);
  write(env(), at("a"), "by");
  EXPECT_EQ(read(env(), at("a")), "by");
  EXPECT_TRUE(env().remove(at("a")).ok());
  EXPECT_EQ(env().remove(at("a")).error().code, Code::kNotFound);
  EXPECT_EQ(*env().exists(at("a")), false);
}

TEST_P(AnyEnv, ReadsPastTheEndAreTruncation) {
  write(env(), at("a"), "hello");
  const auto file = env().open_read(at("a"));
  std::array<std::byte, 4> four{};
  EXPECT_TRUE((*file)->read_at(1, four).ok());
  EXPECT_EQ((*file)->read_at(2, four).error().code, Code::kCorruption);
}

TEST_P(AnyEnv, WritesInPlaceKeepTheSize) {
  write(env(), at("a"), "hello");
  const auto file = env().open_in_place(at("a"));
  ASSERT_TRUE((*file)->write_at(1, bytes("EL")).ok());
  EXPECT_FALSE((*file)->write_at(4, bytes("xx")).ok());
  EXPECT_TRUE((*file)->sync().ok());
  EXPECT_EQ(read(env(), at("a")), "hELlo");
  EXPECT_EQ(env().open_in_place(at("none")).error().code, Code::kNotFound);
}

TEST_P(AnyEnv, RenameReplacesAndKeepsOpenFiles) {
  write(env(), at("a"), "new");
  write(env(), at("b"), "old");
  const auto old = env().open_read(at("b"));
  ASSERT_TRUE(env().rename(at("a"), at("b")).ok());
  EXPECT_EQ(read(env(), at("b")), "new");
  EXPECT_EQ(read(env(), at("a")), "not found");
  std::array<std::byte, 3> three{};
  ASSERT_TRUE((*old)->read_at(0, three).ok());
  EXPECT_EQ(static_cast<char>(three[0]), 'o');
  EXPECT_EQ(env().rename(at("a"), at("c")).error().code, Code::kNotFound);
}

TEST_P(AnyEnv, HardLinksShareOneFile) {
  write(env(), at("a"), "hello");
  ASSERT_TRUE(env().link(at("a"), at("b")).ok());
  EXPECT_FALSE(env().link(at("a"), at("b")).ok()) << "names are not replaced";
  EXPECT_EQ(env().stat(at("a"))->links, 2U);
  ASSERT_TRUE((*env().open_in_place(at("b")))->write_at(0, bytes("J")).ok());
  EXPECT_EQ(read(env(), at("a")), "Jello");
  ASSERT_TRUE(env().remove(at("a")).ok());
  EXPECT_EQ(read(env(), at("b")), "Jello");
  EXPECT_EQ(env().stat(at("b"))->links, 1U);
}

TEST_P(AnyEnv, SymbolicLinksAreFollowedSeenAndReplaced) {
  ASSERT_TRUE(env().create_directories(at("one/two")).ok());
  write(env(), at("one/two/a"), "hello");
  ASSERT_TRUE(env().symlink("one/two", at("link")).ok());
  EXPECT_EQ(read(env(), at("link/a")), "hello");
  EXPECT_EQ(*env().read_link(at("link")), "one/two");
  ASSERT_TRUE(env().symlink("../two/a", at("one/two/self")).ok());
  EXPECT_EQ(read(env(), at("link/self")), "hello");
  EXPECT_TRUE(env().stat(at("link"))->is_symlink);
  EXPECT_TRUE(env().stat(at("link"))->is_directory);
  ASSERT_TRUE(env().create_directories(at("three")).ok());
  ASSERT_TRUE(env().symlink("three", at("link.new")).ok());
  ASSERT_TRUE(env().rename(at("link.new"), at("link")).ok());
  EXPECT_EQ(read(env(), at("link/a")), "not found");
  ASSERT_TRUE(env().symlink("nowhere", at("dangling")).ok());
  EXPECT_TRUE(env().stat(at("dangling"))->is_symlink) << "a link to nothing is there";
  EXPECT_FALSE(env().read_link(at("one")).ok());
}

TEST_P(AnyEnv, DirectoriesAreListedInOrderAndRemovedWhenEmpty) {
  ASSERT_TRUE(env().create_directories(at("d")).ok());
  ASSERT_TRUE(env().create_directories(at("d")).ok()) << "there already";
  write(env(), at("d/b"), "");
  write(env(), at("d/a"), "");
  EXPECT_EQ(*env().list(at("d")), (std::vector<std::string>{"a", "b"}));
  EXPECT_FALSE(env().remove_directory(at("d")).ok());
  EXPECT_FALSE(env().remove(at("d")).ok());
  EXPECT_TRUE(remove_tree(env(), at("d")).ok());
  EXPECT_TRUE(remove_tree(env(), at("d")).ok()) << "none there is fine";
  EXPECT_FALSE(*env().exists(at("d")));
}

TEST_P(AnyEnv, LocksExclude) {
  auto first = env().lock(at("lock"), IfLocked::kFail);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(env().lock(at("lock"), IfLocked::kFail).error().code, Code::kConflict);
  first->reset();
  EXPECT_TRUE(env().lock(at("lock"), IfLocked::kFail).ok());
}

// Every state that a power failure may leave, and how often each was met.
template <class Describe>
std::map<std::string, int> outcomes(const FaultEnv& env, Describe describe) {
  std::map<std::string, int> seen;
  AllChoices choices;
  do {
    const auto after = env.after_power_loss(choices);
    ++seen[describe(*after)];
  } while (choices.advance());
  return seen;
}

std::set<std::string> contents_after_loss(const FaultEnv& env, const std::string& path) {
  std::set<std::string> seen;
  for (const auto& [state, count] : outcomes(env, [&](FaultEnv& after) { return read(after, path); }))
    seen.insert(state);
  return seen;
}

using Set = std::set<std::string>;

TEST(FaultEnv, WhatWasSyncedStays) {
  FaultEnv env;
  write_synced(env, "/a", "hello");
  EXPECT_EQ(contents_after_loss(env, "/a"), (Set{"not found", "hello"})) << "its name was not synced";
  ASSERT_TRUE(env.sync_directory("/").ok());
  EXPECT_EQ(contents_after_loss(env, "/a"), (Set{"hello"}));
  EXPECT_EQ(env.pending(), 0U);
}

TEST(FaultEnv, UnsyncedContentsMayBeLostShortOrZero) {
  FaultEnv env;
  write(env, "/a", "hello!");
  ASSERT_TRUE(env.sync_directory("/").ok());
  EXPECT_EQ(contents_after_loss(env, "/a"), (Set{"", "hel", "hello!", std::string(6, '\0')}));
  EXPECT_EQ(read(*env.after_kill(), "/a"), "hello!") << "the kernel keeps what a killed process wrote";
}

TEST(FaultEnv, InPlaceWritesTearAtSectors) {
  FaultEnv env;
  write_synced(env, "/a", std::string(1536, 'o'));
  ASSERT_TRUE(env.sync_directory("/").ok());
  ASSERT_TRUE((*env.open_in_place("/a"))->write_at(0, bytes(std::string(1536, 'N'))).ok());
  std::set<std::string> seen;
  for (const auto& state : contents_after_loss(env, "/a")) {
    ASSERT_EQ(state.size(), 1536U);
    for (int i = 0; i < 3; ++i) ASSERT_EQ(state.substr(i * 512, 512), std::string(512, state[i * 512]));
    seen.insert({state[0], state[512], state[1024]});
  }
  EXPECT_EQ(seen, (Set{"ooo", "ooN", "oNo", "oNN", "Noo", "NoN", "NNo", "NNN"}));
}

TEST(FaultEnv, SectorsAreNotTorn) {
  FaultEnv env;
  write_synced(env, "/a", std::string(100, 'o'));
  ASSERT_TRUE(env.sync_directory("/").ok());
  ASSERT_TRUE((*env.open_in_place("/a"))->write_at(10, bytes("NNN")).ok());
  EXPECT_EQ(contents_after_loss(env, "/a").size(), 2U);
}

TEST(FaultEnv, LaterWritesMayBeKeptWithoutEarlierOnes) {
  FaultEnv env;
  write_synced(env, "/a", std::string(1024, 'o'));
  ASSERT_TRUE(env.sync_directory("/").ok());
  const auto file = env.open_in_place("/a");
  ASSERT_TRUE((*file)->write_at(0, bytes("1")).ok());
  ASSERT_TRUE((*file)->write_at(600, bytes("2")).ok());
  Set seen;
  for (const auto& state : contents_after_loss(env, "/a")) seen.insert({state[0], state[600]});
  EXPECT_EQ(seen, (Set{"oo", "1o", "o2", "12"}));
  ASSERT_TRUE((*file)->sync().ok());
  EXPECT_EQ(contents_after_loss(env, "/a").size(), 1U);
}

TEST(FaultEnv, TruncationMayBeLost) {
  FaultEnv env;
  write_synced(env, "/a", "old");
  ASSERT_TRUE(env.sync_directory("/").ok());
  write(env, "/a", "new!");
  const Set seen = contents_after_loss(env, "/a");
  EXPECT_TRUE(seen.contains("old") && seen.contains("") && seen.contains("new!"));
}

TEST(FaultEnv, NamesAreKeptInAnyCombination) {
  FaultEnv env;
  write_synced(env, "/a", "A");
  write_synced(env, "/b", "B");
  const auto names = [](FaultEnv& after) { return read(after, "/a").substr(0, 1) + read(after, "/b").substr(0, 1); };
  const auto seen = outcomes(env, names);
  EXPECT_EQ(seen.size(), 4U) << "n is for not found";
  EXPECT_TRUE(seen.contains("nB") && seen.contains("An") && seen.contains("nn") && seen.contains("AB"));
}

TEST(FaultEnv, ARenameIsOneStep) {
  FaultEnv env;
  write_synced(env, "/new", "N");
  write_synced(env, "/a", "O");
  ASSERT_TRUE(env.sync_directory("/").ok());
  ASSERT_TRUE(env.rename("/new", "/a").ok());
  const auto names = [](FaultEnv& after) { return read(after, "/a") + " " + read(after, "/new"); };
  const auto seen = outcomes(env, names);
  EXPECT_EQ(seen.size(), 2U);
  EXPECT_TRUE(seen.contains("O N") && seen.contains("N not found"));
  ASSERT_TRUE(env.sync_directory("/").ok());
  EXPECT_EQ(contents_after_loss(env, "/a"), (Set{"N"}));
}

TEST(FaultEnv, ARenameMayOutrunTheDataOfItsFile) {
  FaultEnv env;
  write_synced(env, "/a", "old");
  ASSERT_TRUE(env.sync_directory("/").ok());
  write(env, "/new", "newest");
  ASSERT_TRUE(env.rename("/new", "/a").ok());
  ASSERT_TRUE(env.sync_directory("/").ok());
  EXPECT_TRUE(contents_after_loss(env, "/a").contains("")) << "the classic: an empty file under the final name";
}

TEST(FaultEnv, ARenameBetweenDirectoriesNeedsBothSynced) {
  FaultEnv env;
  ASSERT_TRUE(env.create_directories("/x").ok() && env.create_directories("/y").ok());
  write_synced(env, "/x/a", "A");
  ASSERT_TRUE(env.sync_directory("/").ok() && env.sync_directory("/x").ok());
  ASSERT_TRUE(env.rename("/x/a", "/y/a").ok());
  ASSERT_TRUE(env.sync_directory("/y").ok());
  const auto names = [](FaultEnv& after) { return read(after, "/x/a") + " " + read(after, "/y/a"); };
  EXPECT_EQ(outcomes(env, names).size(), 2U) << "never in both, never in none";
  ASSERT_TRUE(env.sync_directory("/x").ok());
  EXPECT_EQ(outcomes(env, names).size(), 1U);
}

TEST(FaultEnv, RemovalMayBeUndoneAndDirectoriesMayVanish) {
  FaultEnv env;
  write_synced(env, "/a", "A");
  ASSERT_TRUE(env.sync_directory("/").ok());
  ASSERT_TRUE(env.remove("/a").ok());
  EXPECT_EQ(contents_after_loss(env, "/a"), (Set{"A", "not found"}));
  ASSERT_TRUE(env.create_directories("/d").ok());
  write_synced(env, "/d/b", "B");
  ASSERT_TRUE(env.sync_directory("/d").ok());
  EXPECT_EQ(contents_after_loss(env, "/d/b"), (Set{"B", "not found"})) << "/d itself was not synced";
  ASSERT_TRUE(env.sync_directory("/").ok());
  EXPECT_EQ(contents_after_loss(env, "/d/b"), (Set{"B"}));
}

TEST(FaultEnv, AFailedSyncIsNotMendedByAnother) {
  FaultEnv env;
  write_synced(env, "/a", "old");
  ASSERT_TRUE(env.sync_directory("/").ok());
  const auto file = env.open_in_place("/a");
  ASSERT_TRUE((*file)->write_at(0, bytes("new")).ok());
  env.set_fault({.kind = Fault::Kind::kOnce, .at = 1});
  EXPECT_FALSE((*file)->sync().ok());
  EXPECT_TRUE((*file)->sync().ok()) << "it says yes";
  EXPECT_EQ(read(env, "/a"), "new");
  EXPECT_EQ(contents_after_loss(env, "/a"), (Set{"old", "new"})) << "and yet";
  ASSERT_TRUE((*file)->write_at(0, bytes("new")).ok());
  EXPECT_TRUE((*file)->sync().ok());
  EXPECT_EQ(contents_after_loss(env, "/a"), (Set{"new"})) << "writing again helps";
}

TEST(FaultEnv, CrashesStopEverythingAndErrorsDoNot) {
  for (const auto kind : {Fault::Kind::kCrash, Fault::Kind::kOnce, Fault::Kind::kFrom}) {
    FaultEnv env;
    write_synced(env, "/before", "B");
    env.set_fault({.kind = kind, .at = 2, .error = ENOSPC, .part = 0.5});
    auto file = env.create("/a");
    ASSERT_TRUE(file.ok());
    const Status written = (*file)->append(bytes("12345678"));
    EXPECT_EQ(written.error().native, ENOSPC);
    EXPECT_EQ((*file)->append(bytes("x")).ok(), kind == Fault::Kind::kOnce);
    EXPECT_EQ(read(env, "/before") == "B", kind != Fault::Kind::kCrash);
    EXPECT_EQ(read(*env.after_kill(), "/a"), kind == Fault::Kind::kOnce ? "1234x" : "1234");
    EXPECT_EQ(env.operations(), 3);
  }
}

TEST(FaultEnv, ReadsFailWhenTold) {
  FaultEnv env;
  write_synced(env, "/a", "A");
  env.set_fault({.kind = Fault::Kind::kRead, .at = 2});
  EXPECT_EQ(read(env, "/a"), "input/output") << "the open is the first, the read the second";
  EXPECT_EQ(read(env, "/a"), "A");
}

TEST(FaultEnv, AFullDiskTakesWhatFits) {
  FaultEnv env;
  write_synced(env, "/a", "12345");
  env.set_capacity(8);
  EXPECT_EQ(*env.free_space("/"), 3U);
  auto file = env.create("/b");
  EXPECT_EQ((*file)->append(bytes("123456")).error().native, ENOSPC);
  EXPECT_EQ(read(env, "/b"), "123");
  ASSERT_TRUE((*env.open_in_place("/a"))->write_at(0, bytes("abcde")).ok()) << "in place needs no space";
}

TEST(FaultEnv, CopiesDoNotShareWhatIsDoneToOne) {
  FaultEnv env;
  ASSERT_TRUE(env.create_directories("/d").ok());
  write_synced(env, "/d/a", "old");
  const std::string before = env.image();
  FaultEnv copy(env);
  ASSERT_TRUE((*copy.open_in_place("/d/a"))->write_at(0, bytes("new")).ok());
  ASSERT_TRUE(copy.rename("/d/a", "/d/b").ok() && copy.sync_directory("/d").ok());
  write(copy, "/d/c", "more");
  EXPECT_EQ(env.image(), before);
  EXPECT_EQ(contents_after_loss(env, "/d/b"), (Set{"not found"}));
  EXPECT_EQ(read(copy, "/d/b"), "new");
}

TEST(FaultEnv, DisksWithTheSameImageReadTheSame) {
  FaultEnv env;
  ASSERT_TRUE(env.create_directories("/d").ok());
  write(env, "/d/a", "A");
  write(env, "/d/b", "B");
  const std::string image = env.image();
  write(env, "/d/new", "A");
  EXPECT_NE(env.image(), image) << "another name";
  ASSERT_TRUE(env.rename("/d/new", "/d/a").ok());
  EXPECT_EQ(env.image(), image) << "the same contents, written again";
  env.make_durable();
  EXPECT_EQ(env.image(), image) << "what is durable cannot be read";
  Set images{image};
  const auto differs = [&](const std::function<Status(FaultEnv&)>& change) {
    FaultEnv other(env);
    return change(other).ok() && images.insert(other.image()).second;
  };
  EXPECT_TRUE(differs([](FaultEnv& other) { return write_text_atomically(other, "/d/a", "a"); }));
  EXPECT_TRUE(differs([](FaultEnv& other) { return write_text_atomically(other, "/d/a", "A1 bB"); }));
  EXPECT_TRUE(differs([](FaultEnv& other) { return other.rename("/d/a", "/a"); }));
  EXPECT_TRUE(differs([](FaultEnv& other) { return other.rename("/d/a", "/d/b"); }));
  EXPECT_TRUE(differs([](FaultEnv& other) { return other.create_directories("/d/c"); }));
  EXPECT_TRUE(differs([](FaultEnv& other) { return other.link("/d/b", "/d/c"); }));
  EXPECT_TRUE(differs([](FaultEnv& other) { return write_text_atomically(other, "/d/c", "B"); }));
  EXPECT_TRUE(differs([](FaultEnv& other) { return other.symlink("B", "/d/c"); }));
  EXPECT_TRUE(differs([](FaultEnv& other) { return other.symlink("b", "/d/c"); }));
}

TEST(FaultEnv, WriteTextAtomicallyIsOldOrNewFromEveryOperation) {
  FaultEnv before;
  write_synced(before, "/a", "old");
  ASSERT_TRUE(before.sync_directory("/").ok());
  before.make_durable();
  Set seen;
  for (int64_t at = 1;; ++at) {
    FaultEnv env(before);
    env.set_fault({.kind = Fault::Kind::kCrash, .at = at, .part = 0.5});
    const bool done = write_text_atomically(env, "/a", "new").ok();
    for (const auto& state : contents_after_loss(env, "/a")) seen.insert(state);
    if (done) {
      EXPECT_EQ(contents_after_loss(env, "/a"), (Set{"new"}));
      break;
    }
  }
  EXPECT_EQ(seen, (Set{"old", "new"}));
}

}  // namespace
}  // namespace lathe::io
