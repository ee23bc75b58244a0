#include "store/store.h"

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

namespace lathe::store {
namespace {

class StoreTest : public ::testing::Test {
 protected:
  StoreTest() {
    std::filesystem::remove_all(path_), std::filesystem::remove(path_ + "-wal"),
        std::filesystem::remove(path_ + "-shm");
  }
  ~StoreTest() override {
    std::filesystem::remove(path_), std::filesystem::remove(path_ + "-wal"), std::filesystem::remove(path_ + "-shm");
  }
  const std::string path_ =
      (std::filesystem::temp_directory_path() / ("lathe-store-" + std::to_string(::getpid()))).string();
};

TEST_F(StoreTest, KeepsWhatItWasGivenAcrossOpenings) {
  {
    const auto store = std::move(Store::open(path_)).value();
    ASSERT_TRUE(store->add_job({.id = "j", .state = "queued", .request_json = "{}"}).ok());
    ASSERT_TRUE(store
                    ->finish_job({.id = "j", .state = "succeeded", .learned = {.version = 2, .loss_before = 1.5}},
                                 {{.name = "w", .gradient_norm = 3}})
                    .ok());
    ASSERT_TRUE(
        store->add_version({.version = 1, .job_id = "j", .loss = 1.5, .learning_rate = 1e-5, .changed_fraction = 0.25})
            .ok());
    ASSERT_TRUE(store->add_version({.version = 2, .job_id = "j"}).ok());
    ASSERT_TRUE(store->mark_durable({0, 1}).ok());
  }
  const auto store = std::move(Store::open(path_)).value();
  const Job job = std::move(store->job("j")).value();
  EXPECT_EQ(job.state, "succeeded");
  EXPECT_EQ(job.learned.version, 2);
  EXPECT_EQ(job.learned.loss_before, 1.5);
  EXPECT_EQ(job.pending_versions, 1);
  ASSERT_EQ(store->tensors("j")->size(), 1U);
  EXPECT_EQ(store->tensors("j")->front().gradient_norm, 3);
  EXPECT_GT(job.finished_at, job.created_at - 1);
  const auto versions = std::move(store->versions(10)).value();
  ASSERT_EQ(versions.size(), 2U);
  EXPECT_EQ(versions[0].version, 2);
  EXPECT_EQ(versions[0].durable_as, 0);
  EXPECT_EQ(versions[1].durable_as, 1);
  EXPECT_EQ(versions[1].loss, 1.5);
  EXPECT_EQ(*store->latest_version(), 2);
  EXPECT_EQ(store->job("unknown").error().code, Code::kNotFound);
}

TEST_F(StoreTest, KeepsTheLatestCompletions) {
  const auto store = std::move(Store::open(path_)).value();
  for (int i = 0; i < 5; ++i) {
    const std::string number = std::to_string(i);
    ASSERT_TRUE(
        store
            ->add_completion(
                {.id = "c" + number, .version = i, .conversation_json = "{}", .answer_json = "\"" + number + "\""}, 3)
            .ok());
  }
  const auto kept = std::move(store->completions(10)).value();
  ASSERT_EQ(kept.size(), 3U);
  EXPECT_EQ(kept[0].id, "c4");
  EXPECT_EQ(kept[2].id, "c2");
  EXPECT_EQ(store->completion("c1").error().code, Code::kNotFound);
  ASSERT_TRUE(store->mark_corrected("c3", "learn-1").ok());
  const Completion third = std::move(store->completion("c3")).value();
  EXPECT_EQ(third.version, 3);
  EXPECT_EQ(third.answer_json, "\"3\"");
  EXPECT_EQ(third.job_id, "learn-1");
  EXPECT_GT(third.created_at, 0);
}

TEST_F(StoreTest, KeepsNoCompletionThatIsTooLargeOrNotAskedFor) {
  const auto store = std::move(Store::open(path_)).value();
  ASSERT_TRUE(store->add_completion({.id = "off"}, 0).ok());
  ASSERT_TRUE(
      store->add_completion({.id = "large", .answer_json = std::string(Store::kMaxCompletionBytes + 1, ' ')}, 3).ok());
  EXPECT_TRUE(store->completions(10)->empty());
}

TEST_F(StoreTest, AFileOfTheFirstSchemaIsMigrated) {
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &db), SQLITE_OK);
  const char* first =
      "CREATE TABLE examples(id INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL, created_at "
      "REAL NOT NULL);"
      "CREATE TABLE jobs(id TEXT PRIMARY KEY, state TEXT NOT NULL, request TEXT NOT NULL, result TEXT NOT NULL, "
      "created_at REAL NOT "
      "NULL, finished_at REAL NOT NULL);"
      "CREATE TABLE versions(version INTEGER PRIMARY KEY, job_id TEXT NOT NULL, created_at REAL NOT NULL, loss REAL "
      "NOT NULL,"
      " learning_rate REAL NOT NULL, changed_fraction REAL NOT NULL, synced INTEGER NOT NULL);"
      "INSERT INTO versions VALUES(7, 'j', 1, 2, 3, 4, 1);"
      "INSERT INTO jobs VALUES('j', 'succeeded', '{}', "
      "'{\"version\":7,\"loss_after\":0.5,\"tensors\":[{\"name\":\"w\",\"limiter\":2}]}', 1, 2);"
      "INSERT INTO jobs VALUES('f', 'failed', '{}', '{\"error\":{\"message\":\"no\",\"code\":\"internal\"}}', 1, 2);"
      "INSERT INTO jobs VALUES('x', 'failed', '{}', 'no json', 1, 2); PRAGMA user_version=1;";
  ASSERT_EQ(sqlite3_exec(db, first, nullptr, nullptr, nullptr), SQLITE_OK);
  sqlite3_close(db);
  for (int opening = 0; opening < 2; ++opening) {
    auto store = Store::open(path_);
    ASSERT_TRUE(store.ok()) << store.error().message;
    EXPECT_EQ(*(*store)->latest_version(), 7);
    EXPECT_EQ((*store)->job("j")->learned.loss_after, 0.5);
    EXPECT_EQ((*store)->tensors("j")->front().limiter, 2);
    EXPECT_EQ((*store)->job("f")->error, "no");
    EXPECT_EQ((*store)->job("x")->error, "");
    EXPECT_TRUE((*store)->add_completion({.id = "c"}, 1).ok());
    EXPECT_EQ((*store)->completions(10)->size(), 1U);
  }
}

TEST_F(StoreTest, EqualExamplesAreStoredOnce) {
  const auto store = std::move(Store::open(path_)).value();
  const int64_t first = *store->add_example("{\"a\":1}", "j1");
  EXPECT_EQ(*store->add_example("{\"a\":1}", "j2"), first);
  EXPECT_NE(*store->add_example("{\"a\":2}", "j2"), first);
  EXPECT_EQ(*store->example_count(), 2);
}

// A restart finds version 4 on disk. What was made after it is gone, and stays gone when later versions are on disk.
TEST_F(StoreTest, LostVersionsAreNamedAndNeverBecomeDurable) {
  const auto store = std::move(Store::open(path_)).value();
  for (const char* id : {"kept", "gone", "stopped"})
    ASSERT_TRUE(store->add_job({.id = id, .state = "queued", .request_json = "{}"}).ok());
  const auto add = [&](int64_t number, const char* id) {
    ASSERT_TRUE(store->add_version({.version = number, .job_id = id}).ok());
  };
  add(3, "kept"), add(4, "kept"), add(5, "gone"), add(6, "gone"), add(7, "stopped");
  for (const char* id : {"kept", "gone"}) ASSERT_TRUE(store->finish_job({.id = id, .state = "succeeded"}, {}).ok());
  ASSERT_TRUE(store->finish_job({.id = "stopped", .state = "cancelled"}, {}).ok());
  const Lost lost = store->mark_lost({0, 2, 4}).value();
  EXPECT_EQ(lost.versions, (std::vector<int64_t>{5, 6, 7}));
  EXPECT_EQ(lost.jobs, std::vector<std::string>{"gone"});
  EXPECT_EQ(store->job("kept")->state, "succeeded");
  EXPECT_EQ(store->job("kept")->pending_versions, 0);
  EXPECT_EQ(store->job("gone")->state, "lost");
  EXPECT_EQ(store->job("gone")->lost_versions, 2);
  add(8, "again");
  ASSERT_TRUE(store->mark_durable({0, 2, 4, 8}).ok());
  const auto inside = store->versions_in(4, 8).value();
  ASSERT_EQ(inside.size(), 1U);  // not 5 to 7, although they lie between
  EXPECT_EQ(inside[0].version, 8);
  EXPECT_EQ(store->lost_versions(10)->size(), 3U);
  EXPECT_TRUE(store->mark_lost({0, 2, 4, 8})->versions.empty());
}

TEST_F(StoreTest, JobsAreListedInPages) {
  const auto store = std::move(Store::open(path_)).value();
  for (int i = 0; i < 5; ++i)
    ASSERT_TRUE(store->add_job({.id = "j" + std::to_string(i), .state = "queued", .request_json = "{}"}).ok());
  EXPECT_EQ(store->jobs(2)->front().id, "j4");
  const auto second = store->jobs(2, "j3").value();
  ASSERT_EQ(second.size(), 2U);
  EXPECT_EQ(second[0].id, "j2");
  EXPECT_EQ(second[1].id, "j1");
  EXPECT_EQ(store->jobs(2, "j0")->size(), 0U);
  EXPECT_EQ(store->jobs(2, "none").error().code, Code::kNotFound);
}

TEST_F(StoreTest, JobsCutOffByACrashAreInterrupted) {
  {
    const auto store = std::move(Store::open(path_)).value();
    ASSERT_TRUE(store->add_job({.id = "cut", .state = "queued", .request_json = "{}"}).ok());
    ASSERT_TRUE(store->set_state("cut", "running").ok());
  }
  const auto store = std::move(Store::open(path_)).value();
  EXPECT_EQ(store->job("cut")->state, "interrupted");
  EXPECT_EQ(store->job("cut")->error_code, "unavailable");
}

TEST_F(StoreTest, ThreadsShareIt) {
  const auto store = std::move(Store::open(path_)).value();
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 25; ++i) EXPECT_TRUE(store->add_example(std::to_string(t * 100 + i), "j").ok());
      });
    }
  }
  EXPECT_EQ(*store->example_count(), 100);
}

TEST_F(StoreTest, ItsFilesAreForTheirOwnerAlone) {
  namespace fs = std::filesystem;
  const auto owner = fs::perms::owner_read | fs::perms::owner_write;
  std::ofstream(path_).close();  // as an earlier version left it
  fs::permissions(path_, owner | fs::perms::group_read | fs::perms::others_read);
  const auto store = std::move(Store::open(path_)).value();
  ASSERT_TRUE(store->add_example("1", "j").ok());
  EXPECT_EQ(fs::status(path_).permissions(), owner);
  ASSERT_TRUE(fs::exists(path_ + "-wal"));
  EXPECT_EQ(fs::status(path_ + "-wal").permissions(), owner);
}

TEST_F(StoreTest, AFileThatIsNoDatabaseIsRefused) {
  std::ofstream(path_) << std::string(4096, 'x');
  const auto store = Store::open(path_);
  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.error().code, Code::kCorruption);
  EXPECT_NE(store.error().message.find(path_), std::string::npos);
}

}  // namespace
}  // namespace lathe::store
