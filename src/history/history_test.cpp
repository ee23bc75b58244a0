// Exports, verification, pruning, publication and pushing, on a file system in memory.
#include "history/history.h"

#include <nlohmann/json.hpp>

#include "history/export.h"
#include "history/prune.h"
#include "history/publish.h"
#include "history/push.h"
#include "history/test_model.h"

namespace lathe::history {
namespace {

constexpr const char* kDir = "/models/m";
constexpr const char* kLive = "/models/live";
constexpr const char* kCopy = "/models/copy";

class HistoryTest : public ::testing::Test {
 protected:
  HistoryTest() {
    write_model(env_, kDir, small_model("0"));
    write_file(env_, std::string(kDir) + "/tokenizer.json", "{\"words\":[]}");
    write_file(env_, std::string(kDir) + "/pytorch_model.bin", "weights of long ago");
    env_.make_durable();
  }
  void sync_to(const std::string& fill, const char* directory = kDir) {
    const auto done = sync(env_, directory, MemoryTensors(small_model(fill)), {}, on_one_thread());
    ASSERT_TRUE(done.ok()) << done.error().message;
  }
  History open(const char* directory = kDir) { return History::open(env_, directory, {.threads = 1}).value(); }
  std::string now(const std::string& directory = kDir) { return contents(env_, directory); }
  std::vector<Damage> damages(const char* directory = kDir) {
    const auto checked = verify(env_, directory, 1);
    if (!checked.ok()) return {{"verify", checked.error().message}};
    return checked->damages;
  }
  Result<PublishReport> publish_now(PublishOptions options = {}) { return publish(env_, open(), kLive, options); }

  io::FaultEnv env_;
};

TEST_F(HistoryTest, EveryVersionIsWhatItWas) {
  const std::vector<std::string> fills = {"0", "1", "12", "0", "34"};
  for (size_t i = 1; i < fills.size(); ++i) sync_to(fills[i]);
  const History history = open();
  EXPECT_EQ(history.versions(), (std::vector<int64_t>{0, 1, 2, 3, 4}));
  for (int64_t version = 0; version <= 4; ++version) {
    const std::string target = "/out/" + std::to_string(version);
    const Status exported = export_version(env_, history, version, target, {.threads = 1});
    ASSERT_TRUE(exported.ok()) << exported.error().message;
    EXPECT_EQ(now(target), contents(small_model(fills[static_cast<size_t>(version)])));
    EXPECT_EQ(*env_.list(target),
              (std::vector<std::string>{"config.json", "model-1.safetensors", "model-2.safetensors",
                                        "model-3.safetensors", "model.safetensors.index.json", "tokenizer.json"}));
  }
  EXPECT_EQ(now(), contents(small_model("34"))) << "exporting changes nothing";
  EXPECT_EQ(history.at(0)->state().root(), history.at(3)->state().root());
  EXPECT_EQ(export_version(env_, history, 9, "/out/9").error().code, Code::kNotFound);
  EXPECT_EQ(export_version(env_, history, 1, kDir).error().code, Code::kInvalidArgument);
}

TEST_F(HistoryTest, DamageIsNamed) {
  const auto before = verify(env_, kDir, 1);
  ASSERT_TRUE(before.ok()) << before.error().message;
  EXPECT_FALSE(before->history) << "nothing to compare with";
  EXPECT_FALSE(*env_.exists(delta::Paths(kDir).lathe)) << "reading creates nothing";
  sync_to("1");
  sync_to("2");
  EXPECT_TRUE(damages().empty());
  const auto only = [&](const char* where) {
    const auto found = damages();
    ASSERT_EQ(found.size(), 1U) << where;
    EXPECT_NE(found[0].where.find(where), std::string::npos) << found[0].where;
  };
  const auto flip = [&](const std::string& path, uint64_t offset) { env_.damage(path, offset, std::byte{4}); };
  const std::string shard = std::string(kDir) + "/model-2.safetensors";
  flip(shard, 3000);
  only("model-2.safetensors tile 1");
  flip(shard, 3000);
  flip(shard, 20);
  only("model-2.safetensors tile 0");
  flip(shard, 20);
  const std::string delta = delta::Paths(kDir).delta(0, 1);
  const uint64_t size = env_.stat(delta)->size;
  for (uint64_t at = 0; at < size; at += 97) {
    flip(delta, at);
    only(".lathe/deltas/0-1.dlt");
    flip(delta, at);
  }
  const std::string whole = io::read_text(env_, shard).value();
  write_file(env_, shard, whole.substr(0, 5000));
  only("model-2.safetensors");
  write_file(env_, shard, whole);
  EXPECT_TRUE(damages().empty());
}

TEST_F(HistoryTest, ForeignDeltasAreNamed) {
  write_model(env_, kCopy, small_model("7"));
  sync_to("1", kCopy);
  sync_to("8", kCopy);
  sync_to("1");
  sync_to("2");
  sync_to("3");
  const std::string other = io::read_text(env_, delta::Paths(kCopy).delta(1, 2)).value();
  write_file(env_, delta::Paths(kDir).delta(1, 2), other);
  const auto found = damages();
  ASSERT_EQ(found.size(), 1U);
  EXPECT_NE(found[0].where.find("2-3.dlt"), std::string::npos) << "it begins where the foreign one does not end";
  const auto back = rollback(env_, kDir, 1, {}, on_one_thread());
  ASSERT_FALSE(back.ok()) << "and is never applied";
  EXPECT_EQ(now(), contents(small_model("3")));
}

TEST(Retention, KeepsAllThenHourlyThenDailyThenWeekly) {
  constexpr int64_t kMinute = 60'000, kHour = 60 * kMinute, kDay = 24 * kHour;
  const int64_t now = 20'000 * kDay;  // a Thursday, midnight
  std::vector<std::pair<int64_t, int64_t>> versions;
  int64_t version = 0;
  for (int64_t age = 100 * kDay; age >= 0; age -= 10 * kMinute) versions.emplace_back(version++, now - age);
  const auto kept = retained(versions, {}, now);
  std::map<std::string, int> count;
  for (const auto& [v, time] : versions) {
    if (!kept.contains(v)) continue;
    const int64_t age = now - time;
    ++count[age < 3 * kHour ? "all" : age < 48 * kHour ? "hourly" : age < 30 * kDay ? "daily" : "weekly"];
  }
  EXPECT_EQ(count["all"], 18);
  EXPECT_EQ(count["hourly"], 46) << "45 hours, and the one version of an hour that is exactly three hours old";
  EXPECT_EQ(count["daily"], 29) << "28 days and the part of one";
  EXPECT_EQ(count["weekly"], 12) << "eleven weeks, one of them in part, and the first version";
  EXPECT_TRUE(kept.contains(0) && kept.contains(version - 1));
  EXPECT_EQ(retained({{5, 0}}, {}, now), (std::set<int64_t>{5}));
  EXPECT_TRUE(retained({}, {}, now).empty());
}

TEST_F(HistoryTest, PruningMergesAndKeepsWhatItKeeps) {
  for (const char* fill : {"1", "2", "23", "24", "0"}) sync_to(fill);
  ASSERT_TRUE(rollback(env_, kDir, 4, {}, on_one_thread()).ok());
  const Retention nothing{.all_hours = 0, .hourly_hours = 0, .daily_days = 0};
  const int64_t later = INT64_C(9'000'000'000'000);
  const auto planned = prune(env_, kDir, nothing, later, /*dry_run=*/true, {.threads = 1});
  ASSERT_TRUE(planned.ok()) << planned.error().message;
  EXPECT_EQ(planned->removed, (std::vector<int64_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(open().deltas().size(), 6U);

  ASSERT_TRUE(record_pushed(env_, delta::Paths(kDir), "elsewhere", 3).ok());
  const Root root = open().at(3)->state().root();
  const auto pruned = prune(env_, kDir, nothing, later, false, {.threads = 1});
  ASSERT_TRUE(pruned.ok()) << pruned.error().message;
  EXPECT_EQ(pruned->removed, (std::vector<int64_t>{1, 2, 4, 5})) << "a copy waits at 3";
  EXPECT_LT(pruned->bytes_after, pruned->bytes_before);
  const History history = open();
  EXPECT_EQ(history.deltas(), (std::vector<DeltaFile>{{0, 3}, {3, 6}}));
  EXPECT_EQ(env_.list(delta::Paths(kDir).deltas)->size(), 2U) << "what was merged is gone";
  EXPECT_EQ(history.at(3)->state().root(), root);
  EXPECT_TRUE(damages().empty());
  EXPECT_EQ(history.reader({3, 6}).value()->tiles().size(), 1U) << "24 -> 0 -> 24 and 23 -> 24 is one tile";
  ASSERT_TRUE(rollback(env_, kDir, 0, {}, on_one_thread()).ok());
  EXPECT_EQ(now(), contents(small_model("0")));
}

TEST_F(HistoryTest, PublishesWithoutCopyingAndStaysAsItWas) {
  sync_to("1");
  const auto first = publish_now();
  ASSERT_TRUE(first.ok()) << first.error().message;
  EXPECT_EQ(first->linked, 3);
  EXPECT_EQ(now(kLive), contents(small_model("1")));
  EXPECT_EQ(*env_.read_link(kLive), "live.generations/v0000000001");
  EXPECT_TRUE(*env_.exists(std::string(kLive) + "/model-v1-1.safetensors"));
  EXPECT_TRUE(*env_.exists(std::string(kLive) + "/tokenizer.json"));
  EXPECT_FALSE(*env_.exists(std::string(kLive) + "/pytorch_model.bin")) << "weights of another version";
  sync_to("12");
  EXPECT_EQ(now(kLive), contents(small_model("1"))) << "published means unchanged";
  ASSERT_TRUE(publish_now().ok());
  EXPECT_EQ(now(kLive), contents(small_model("12")));
  const auto again = publish_now();
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->linked, 0) << "there already";
  for (const char* fill : {"3", "4", "5"}) {
    sync_to(fill);
    ASSERT_TRUE(publish_now({.keep = 2, .copy = true}).ok());
  }
  EXPECT_EQ(*env_.list(std::string(kLive) + ".generations"), (std::vector<std::string>{"v0000000004", "v0000000005"}));
  EXPECT_EQ(publish(env_, open(), kDir).error().code, Code::kInvalidArgument) << "a directory is in the way";
}

TEST_F(HistoryTest, AReaderInTheMiddleOfALoadNeverMixesVersions) {
  sync_to("1");
  ASSERT_TRUE(publish_now().ok());
  const auto index =
      nlohmann::json::parse(io::read_text(env_, std::string(kLive) + "/model.safetensors.index.json").value());
  const auto path = [&](const char* tensor) {
    return std::string(kLive) + "/" + index["weight_map"][tensor].get<std::string>();
  };
  ASSERT_TRUE(env_.open_read(path("a")).ok());
  sync_to("2");
  ASSERT_TRUE(publish_now().ok());
  for (const char* tensor : {"b", "c", "d"}) {
    EXPECT_EQ(env_.open_read(path(tensor)).error().code, Code::kNotFound) << "it misses the file, and can begin again";
  }
  const std::string pinned = std::string(kLive) + ".generations/v0000000001/";
  EXPECT_TRUE(env_.open_read(pinned + index["weight_map"]["d"].get<std::string>()).ok());
}

TEST_F(HistoryTest, ACopyFollows) {
  sync_to("1");
  const auto made = push(env_, kDir, kCopy, {.threads = 1});
  ASSERT_TRUE(made.ok()) << made.error().message;
  EXPECT_EQ(made->version, 1);
  EXPECT_EQ(now(kCopy), contents(small_model("1")));
  sync_to("2");
  sync_to("23");
  ASSERT_TRUE(push(env_, kDir, kCopy, {.threads = 1}).ok());
  EXPECT_EQ(now(kCopy), contents(small_model("23")));
  EXPECT_TRUE(damages(kCopy).empty());
  ASSERT_TRUE(rollback(env_, kCopy, 2, {}, on_one_thread()).ok()) << "it has the history too";
  EXPECT_EQ(now(kCopy), contents(small_model("2")));
  sync_to("4");
  const auto diverged = push(env_, kDir, kCopy, {.threads = 1});
  ASSERT_FALSE(diverged.ok()) << "versions 4 here and there are different";
  EXPECT_EQ(diverged.error().code, Code::kConflict);
  EXPECT_EQ(now(kCopy), contents(small_model("2")));
}

TEST_F(HistoryTest, ACopyMadeByAnyProgramFollows) {
  sync_to("1");
  sync_to("2");
  write_model(env_, kCopy, small_model("1"));  // rsync --exclude .lathe, yesterday
  const auto followed = push(env_, kDir, kCopy, {.threads = 1});
  ASSERT_TRUE(followed.ok()) << followed.error().message;
  EXPECT_EQ(followed->version, 2);
  EXPECT_EQ(now(kCopy), contents(small_model("2")));
  write_model(env_, "/models/other", small_model("9"));
  const auto unknown = push(env_, kDir, "/models/other", {.threads = 1});
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.error().message.find("--from"), std::string::npos) << unknown.error().message;
}

TEST_F(HistoryTest, DamagedDeltasAreNotReceived) {
  write_model(env_, kCopy, small_model("0"));
  sync_to("1");
  const std::string delta = io::read_text(env_, delta::Paths(kDir).delta(0, 1)).value();
  for (size_t at = 0; at < delta.size(); at += 31) {
    std::string damaged = delta;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x20);
    size_t done = 0;
    const auto received = receive(env_, kCopy, damaged.size(), [&](std::span<std::byte> out) -> Status {
      std::memcpy(out.data(), damaged.data() + done, out.size());
      done += out.size();
      return {};
    });
    ASSERT_FALSE(received.ok()) << "byte " << at;
    ASSERT_EQ(now(kCopy), contents(small_model("0")));
    ASSERT_TRUE(litter(env_, kCopy).empty());
    ASSERT_TRUE(open(kCopy).deltas().empty()) << "nothing was accepted that cannot be applied: byte " << at;
  }
  EXPECT_TRUE(push(env_, kDir, kCopy, {.threads = 1}).ok());
}

}  // namespace
}  // namespace lathe::history
