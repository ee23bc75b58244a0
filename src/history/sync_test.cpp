#include "history/sync.h"

#include "delta/test_dir.h"
#include "delta/test_files.h"
#include "history/import.h"
#include "history/journal.h"
#include "history/lineage.h"
#include "history/test_model.h"

namespace lathe::history {
namespace {

constexpr const char* kDir = "/models/m";

class SyncTest : public ::testing::Test {
 protected:
  SyncTest() {
    write_model(env_, kDir, small_model("0"));
    env_.make_durable();
  }
  Result<SyncReport> sync_to(const std::string& fill, std::optional<int64_t> version = {}, SyncOptions options = {}) {
    return sync(env_, kDir, MemoryTensors(small_model(fill)), version, on_one_thread(std::move(options)));
  }
  std::string now() { return contents(env_, kDir); }
  int64_t version() { return read_version(env_, kDir).value(); }

  io::FaultEnv env_;
};

TEST_F(SyncTest, MakesAVersionOfWhatDiffers) {
  const auto report = sync_to("1", 7);
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->version, 7);
  EXPECT_EQ(report->previous, 0);
  EXPECT_EQ(report->tiles_changed, 3U);
  EXPECT_EQ(report->tiles, 6U) << "three headers, three data tiles";
  EXPECT_EQ(now(), contents(small_model("1")));
  EXPECT_EQ(version(), 7);
  EXPECT_TRUE(litter(env_, kDir).empty());
  EXPECT_EQ(delta::hash_files(env_, kDir, shard_names(env_, kDir).value())->root(), report->root);
}

TEST_F(SyncTest, TensorsThatAreNotLiveStayAsTheyAre) {
  const TestModel only_d = {{"", "d", std::string(600, '1')}};
  const auto report = sync(env_, kDir, MemoryTensors(only_d), 1);
  ASSERT_TRUE(report.ok()) << report.error().message;
  TestModel expected = small_model("0");
  expected[3].bytes = only_d[0].bytes;
  EXPECT_EQ(now(), contents(expected));
  EXPECT_EQ(report->tiles_changed, 1U);
}

// Tensors that can be hashed where they are, as a GPU's; counts what is read beside that.
class FarTensors final : public delta::TensorReader {
 public:
  explicit FarTensors(const TestModel& model) : memory_(model) {}
  std::optional<uint64_t> size(std::string_view tensor) const override { return memory_.size(tensor); }
  Status read(std::string_view tensor, uint64_t offset, std::span<std::byte> out) const override {
    bytes_read += out.size();
    return memory_.read(tensor, offset, out);
  }
  bool hashes_in_place() const override { return true; }
  Result<std::vector<Hash128>> hash_tiles(std::span<const std::vector<delta::TensorRange>> tiles) const override {
    std::vector<Hash128> hashes;
    for (const std::vector<delta::TensorRange>& tile : tiles) {
      codec::Bytes bytes;
      for (const delta::TensorRange& range : tile) {
        codec::Bytes piece(range.size);
        LATHE_TRY(memory_.read(range.tensor, range.offset, piece));
        bytes.insert(bytes.end(), piece.begin(), piece.end());
      }
      hashes.push_back(hash_tile(bytes));
    }
    tiles_hashed += tiles.size();
    return hashes;
  }

  mutable uint64_t bytes_read = 0, tiles_hashed = 0;

 private:
  MemoryTensors memory_;
};

TEST_F(SyncTest, OfTensorsHashedInPlaceOnlyChangedTilesAreRead) {
  TestModel model = small_model("0");
  model[0].bytes.assign(700, '1');
  const FarTensors far(model);
  const auto report = sync(env_, kDir, far, 1, on_one_thread());
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->tiles_changed, 1U);
  EXPECT_EQ(now(), contents(model));
  EXPECT_EQ(far.tiles_hashed, 3U) << "the data tile of each shard";
  EXPECT_EQ(far.bytes_read, 1600U) << "the changed tile: tensors a and b";

  // A tile that holds a tensor of another owner is not hashed in place.
  model[1].bytes.assign(900, '2');
  const FarTensors partly(TestModel(model.begin() + 1, model.end()));
  ASSERT_TRUE(sync(env_, kDir, partly, 2, on_one_thread()).ok());
  EXPECT_EQ(now(), contents(model));
  EXPECT_EQ(partly.tiles_hashed, 2U);
}

TEST_F(SyncTest, NothingDiffersNoVersion) {
  const auto report = sync_to("0");
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->version, 0);
  EXPECT_EQ(version(), 0);
  const auto asked = sync_to("0", 5, {.even_if_equal = true});
  ASSERT_TRUE(asked.ok()) << asked.error().message;
  EXPECT_EQ(version(), 5);
  EXPECT_EQ(asked->bytes_written, 0U);
}

TEST_F(SyncTest, VersionsOnlyGrow) {
  ASSERT_TRUE(sync_to("1", 7).ok());
  EXPECT_EQ(sync_to("2", 7).error().code, Code::kConflict);
  EXPECT_EQ(sync_to("2", 3).error().code, Code::kConflict);
  EXPECT_TRUE(sync_to("1", 7).ok()) << "what is there already is there";
  EXPECT_EQ(sync_to("2")->version, 8);
}

TEST_F(SyncTest, SmallChangesAreWrittenInPlaceAndLargeOnesAnew) {
  ASSERT_TRUE(env_.link(std::string(kDir) + "/model-3.safetensors", "/models/probe").ok());
  const auto first = sync_to("01", 1, {.apply = {.rewrite_above = 2}});
  ASSERT_TRUE(first.ok()) << first.error().message;
  EXPECT_EQ(first->shards_in_place, 1);
  EXPECT_EQ(first->shards_rewritten, 0);
  EXPECT_EQ(first->bytes_written, kBlockBytes) << "one block of one shard";
  EXPECT_EQ(now(), contents(small_model("01")));
  const auto second = sync_to("02");
  ASSERT_TRUE(second.ok()) << second.error().message;
  EXPECT_EQ(second->shards_rewritten, 1) << "its one data tile is most of the shard";
  EXPECT_EQ(now(), contents(small_model("02")));
}

TEST_F(SyncTest, AShardWithTwoNamesIsNeverWrittenInPlace) {
  const std::string shard = std::string(kDir) + "/model-2.safetensors";
  ASSERT_TRUE(env_.link(shard, "/models/published").ok());
  const std::string before = io::read_text(env_, shard).value();
  ASSERT_TRUE(sync_to("01", 1, {.apply = {.rewrite_above = 2}}).ok());
  EXPECT_EQ(io::read_text(env_, "/models/published").value(), before);
  EXPECT_EQ(now(), contents(small_model("01")));
}

TEST_F(SyncTest, RefusesSymbolicLinksUnlessToldToCopy) {
  const std::string shard = std::string(kDir) + "/model-1.safetensors";
  ASSERT_TRUE(env_.rename(shard, "/models/blob").ok());
  ASSERT_TRUE(env_.symlink("../blob", shard).ok());
  const std::string blob = io::read_text(env_, "/models/blob").value();
  const auto refused = sync_to("1");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::kUnsupported);
  EXPECT_NE(refused.error().message.find("model-1.safetensors is a symbolic link"), std::string::npos);
  EXPECT_NE(refused.error().message.find("--materialize"), std::string::npos);
  EXPECT_EQ(now(), contents(small_model("0")));

  const auto copied = sync_to("1", 1, {.materialize = true});
  ASSERT_TRUE(copied.ok()) << copied.error().message;
  EXPECT_FALSE(env_.stat(shard)->is_symlink);
  EXPECT_EQ(now(), contents(small_model("1")));
  EXPECT_EQ(io::read_text(env_, "/models/blob").value(), blob) << "the cache's blob is others' too";
}

TEST_F(SyncTest, AFullDiskIsMetWhileTheDirectoryIsWhole) {
  env_.set_capacity(1 << 20);
  const auto report = sync_to("1");
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.error().native, ENOSPC);
  EXPECT_NE(report.error().message.find("MiB free"), std::string::npos);
  EXPECT_EQ(now(), contents(small_model("0")));
  EXPECT_EQ(version(), 0);
  EXPECT_TRUE(litter(env_, kDir).empty());
}

TEST_F(SyncTest, WithoutRoomForNewShardsTheOldOnesAreWrittenInPlace) {
  ASSERT_TRUE(History::open(env_, kDir).ok());
  leave_little_room(env_, 2'300);
  const auto report = sync_to("1");
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->shards_in_place, 3);
  EXPECT_EQ(report->shards_rewritten, 0);
  EXPECT_EQ(now(), contents(small_model("1")));
}

TEST_F(SyncTest, ADirectoryThatSomebodyElseChangedIsNotWrittenTo) {
  ASSERT_TRUE(sync_to("1", 1).ok());
  env_.damage(std::string(kDir) + "/model-2.safetensors", 5000, std::byte{1});
  const std::string damaged = now();
  const auto report = sync_to("2", 2);
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message.find("model-2.safetensors tile 1"), std::string::npos) << report.error().message;
  EXPECT_EQ(now(), damaged);
  EXPECT_EQ(version(), 1);
}

TEST_F(SyncTest, ADamagedTileStopsWhatIsToBeApplied) {
  ASSERT_TRUE(History::open(env_, kDir, {.threads = 1}).ok());
  // Stopped after the durable point, before the first shard is touched.
  int64_t renamed = 0;
  env_.set_observer([&](int64_t number, const std::string& what) {
    if (what.find("0-1.dlt.lathe-new to") != std::string::npos) renamed = number;
  });
  io::FaultEnv whole(env_);
  env_.set_fault({});
  ASSERT_TRUE(sync_to("1").ok());
  ASSERT_GT(renamed, 0);
  whole.set_fault({.kind = io::Fault::Kind::kCrash, .at = renamed + 2});
  ASSERT_FALSE(sync(whole, kDir, MemoryTensors(small_model("1")), {}, on_one_thread()).ok());
  const auto stopped = whole.after_kill();
  stopped->damage(std::string(kDir) + "/model-2.safetensors", 5000, std::byte{1});
  const std::string before = contents(*stopped, kDir);
  const auto recovered = recover(*stopped, kDir, {.threads = 1});
  ASSERT_FALSE(recovered.ok());
  EXPECT_NE(recovered.error().message.find("model-2.safetensors tile 1"), std::string::npos);
  EXPECT_NE(recovered.error().message.find("neither of version 0 nor of version 1"), std::string::npos)
      << recovered.error().message;
  EXPECT_EQ(contents(*stopped, kDir), before) << "nothing is written over what is not understood";
}

TEST_F(SyncTest, ATensorOfAnotherSizeIsNamed) {
  const auto report = sync(env_, kDir, MemoryTensors({{"", "c", "short"}}), {});
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message.find("tensor c has 5 bytes, 9000"), std::string::npos) << report.error().message;
}

TEST_F(SyncTest, TakesAnotherDirectorysWeights) {
  // Other shards, other order: only names, shapes and dtypes must agree.
  TestModel other = small_model("1");
  for (TestTensor& tensor : other) tensor.shard = "model.safetensors";
  std::swap(other[0], other[3]);
  write_model(env_, "/models/other", other);
  const auto tensors = DirectoryTensors::open(env_, "/models/other", kDir);
  ASSERT_TRUE(tensors.ok()) << tensors.error().message;
  ASSERT_TRUE(sync(env_, kDir, *tensors, {}).ok());
  EXPECT_EQ(now(), contents(small_model("1")));

  other.pop_back();
  write_model(env_, "/models/smaller", other);
  const auto refused = DirectoryTensors::open(env_, "/models/smaller", kDir);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("no tensor a"), std::string::npos) << refused.error().message;
}

TEST_F(SyncTest, VersionZeroIsDurableWhoeverWroteIt) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    io::FaultEnv env(env_);
    const auto shard = env.open_in_place(std::string(kDir) + "/model-2.safetensors");
    const std::string lately(4000, 'x');
    ASSERT_TRUE((*shard)->write_at(2000, std::as_bytes(std::span(lately))).ok());
    ASSERT_TRUE(History::open(env, kDir, {.threads = 1}).ok());
    io::RandomChoices choices(seed);
    const auto later = env.after_power_loss(choices);
    const auto checked = verify(*later, kDir, 1);
    ASSERT_TRUE(checked.ok()) << checked.error().message;
    ASSERT_TRUE(checked->damages.empty()) << seed;
  }
}

// Killed when shards were renamed and the names not yet durable; then there is no room to write the shards anew, and
// then the power fails.
TEST_F(SyncTest, RecoveryDoesNotTrustNamesThatAreNotDurable) {
  class NothingKept final : public io::Choices {
    uint32_t below(uint32_t) override { return 0; }
  };
  ASSERT_TRUE(History::open(env_, kDir, {.threads = 1}).ok());
  env_.make_durable();
  for (int64_t at = 1, done = 0; !done; ++at) {
    io::FaultEnv killed(env_);
    killed.set_fault({.kind = io::Fault::Kind::kCrash, .at = at});
    done = sync(killed, kDir, MemoryTensors(small_model("1")), {}, on_one_thread()).ok();
    const auto next = killed.after_kill();
    leave_little_room(*next, 0);
    ASSERT_TRUE(recover(*next, kDir, {.threads = 1}).ok()) << "operation " << at;
    NothingKept nothing;
    const auto later = next->after_power_loss(nothing);
    const auto checked = verify(*later, kDir, 1);
    ASSERT_TRUE(checked.ok()) << checked.error().message;
    ASSERT_TRUE(checked->damages.empty()) << "operation " << at << ": " << checked->damages[0].where;
  }
}

TEST_F(SyncTest, AttachmentsBelongToTheVersion) {
  const Attachment state{.name = kOptimizerName, .write = [](const Attachment::Sink& sink) {
                           return sink(std::as_bytes(std::span("moments", 7)));
                         }};
  ASSERT_TRUE(sync_to("1", 1, {.record = {.kind = "train", .note = "a run"}, .attachments = {state}}).ok());
  ASSERT_TRUE(sync_to("2", 2).ok());
  ASSERT_TRUE(rollback(env_, kDir, 1).ok());
  const History history = History::open(env_, kDir).value();
  for (const int64_t version : {1, 3}) {
    const delta::DeltaReader* delta = history.reader(*history.leading_to(version)).value();
    ASSERT_TRUE(delta->find_attachment(kOptimizerName)) << version;
    EXPECT_EQ(delta->attachment_text(*delta->find_attachment(kOptimizerName)).value(), "moments");
  }
  const delta::DeltaReader* first = history.reader(*history.leading_to(1)).value();
  const auto record = parse_record(first->attachment_text(*first->find_attachment(kRecordName)).value());
  EXPECT_EQ(record.kind, "train");
  EXPECT_EQ(record.note, "a run");
}

TEST_F(SyncTest, UndoGoesOnAndRedoComesBack) {
  EXPECT_EQ(rollback(env_, kDir, {}).error().code, Code::kNotFound);
  ASSERT_TRUE(sync_to("1", 1).ok());
  ASSERT_TRUE(sync_to("2", 2).ok());
  const auto back = rollback(env_, kDir, {});
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(now(), contents(small_model("1")));
  EXPECT_EQ(back->version, 3);
  EXPECT_EQ(back->restores, 1);
  EXPECT_EQ(rollback(env_, kDir, {})->restores, 0);
  EXPECT_EQ(now(), contents(small_model("0")));
  EXPECT_EQ(rollback(env_, kDir, {}).error().code, Code::kNotFound);
  EXPECT_EQ(redo(env_, kDir)->restores, 1);
  EXPECT_EQ(redo(env_, kDir)->restores, 2);
  EXPECT_EQ(now(), contents(small_model("2")));
  EXPECT_EQ(redo(env_, kDir).error().code, Code::kNotFound);
  EXPECT_EQ(version(), 6);
  const auto unknown = rollback(env_, kDir, 17);
  EXPECT_EQ(unknown.error().code, Code::kNotFound);
  EXPECT_NE(unknown.error().message.find("there are 0, 1, 2, 3, 4, 5, 6"), std::string::npos)
      << unknown.error().message;
}

LineageEntry learned(int64_t version, std::string lesson = "") {
  return {version, {.kind = "learn", .lesson = std::move(lesson)}};
}
LineageEntry back_to(int64_t version, int64_t restores, const char* kind = "rollback") {
  return {version, {.kind = kind, .restores = restores}};
}

TEST(Lineage, LeadsToWhatTheWeightsWereMadeFrom) {
  EXPECT_EQ(lineage_of(0, {}).undo, std::nullopt);
  // A, B, undo B, C: what C was made from is A's weights, not the rollback's number.
  const Lineage branched = lineage_of(0, {learned(4), learned(8), back_to(9, 4), learned(12)});
  EXPECT_EQ(branched.undo, 4);
  EXPECT_EQ(branched.redo, std::nullopt);  // something new was learned
  // A rollback by number can be redone too.
  const Lineage chosen = lineage_of(0, {learned(4), learned(8), back_to(9, 0)});
  EXPECT_EQ(chosen.undo, std::nullopt);
  EXPECT_EQ(chosen.redo, 8);
  EXPECT_EQ(chosen.weights_of, 0);
  const Lineage again = lineage_of(0, {learned(4), learned(8), back_to(9, 4), back_to(10, 0), back_to(11, 4, "redo")});
  EXPECT_EQ(again.undo, 0);
  EXPECT_EQ(again.redo, 8);
}

TEST(Lineage, ALessonInPiecesIsUndoneAsOne) {
  EXPECT_EQ(lineage_of(0, {learned(3, "a"), learned(6, "b"), learned(9, "b")}).undo, 3);
  EXPECT_EQ(lineage_of(0, {learned(3), learned(6)}).undo, 3);  // no name is no lesson
}

TEST(Lineage, OutlivesPruning) {
  // Version 4 went when 0-8 was merged: 9, which restored it, has its weights now, and 0 is what it was made from.
  const Lineage pruned = lineage_of(0, {learned(8), back_to(9, 4)});
  EXPECT_EQ(pruned.weights_of, 9);
  EXPECT_EQ(pruned.undo, 0);
  EXPECT_EQ(pruned.redo, 8);
}

TEST_F(SyncTest, TheStateFileCanBeFoundOutFromTheShards) {
  ASSERT_TRUE(sync_to("1", 1).ok());
  ASSERT_TRUE(sync_to("2", 2).ok());
  const std::string path = delta::Paths(kDir).state, whole = io::read_text(env_, path).value();
  for (const char* damage : {"", "{", "{\"format\":\"lathe state 1\",\"version\":2,\"files\":[{}]}"}) {
    write_file(env_, path, damage);
    const auto history = History::open(env_, kDir);
    ASSERT_TRUE(history.ok()) << history.error().message;
    EXPECT_EQ(history->head().version, 2);
    EXPECT_EQ(io::read_text(env_, path).value(), whole);
  }
  ASSERT_TRUE(env_.remove(path).ok());
  EXPECT_EQ(History::open(env_, kDir)->head().version, 2);
  write_file(env_, path, "{\"format\":\"lathe state 2\"}");
  EXPECT_EQ(History::open(env_, kDir).error().code, Code::kUnsupported);
}

TEST_F(SyncTest, AMissingDeltaIsNamed) {
  for (const char* fill : {"1", "2", "3"}) ASSERT_TRUE(sync_to(fill).ok());
  ASSERT_TRUE(env_.remove(delta::Paths(kDir).delta(1, 2)).ok());
  const auto broken = History::open(env_, kDir);
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(broken.error().message.find("from version 1 to version 2"), std::string::npos) << broken.error().message;
}

TEST(SyncOnDisk, ManyTilesManyThreads) {
  const delta::TestDir dir;
  io::Env& env = io::posix_env();
  TestModel model = {{"model.safetensors", "a", std::string(9'000'000, 'a')},
                     {"model.safetensors", "b", std::string(3'333'333, 'b')}};
  write_model(env, dir.path(), model);
  model[0].bytes[1'234'567] = 'x';
  model[1].bytes.replace(1'000'000, 100'000, 100'000, 'y');
  const auto report = sync(env, dir.path(), MemoryTensors(model), 1);
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->shards_in_place, 1);
  EXPECT_EQ(report->bytes_written, 4096U + 25 * 4096) << "a byte, and 100 000 bytes";
  EXPECT_EQ(contents(env, dir.path()), contents(model));
  const auto whole = verify(env, dir.path(), 0);
  ASSERT_TRUE(whole.ok());
  EXPECT_TRUE(whole->damages.empty());
  ASSERT_TRUE(rollback(env, dir.path(), 0).ok());
  model[0].bytes[1'234'567] = 'a';
  model[1].bytes.replace(1'000'000, 100'000, 100'000, 'b');
  EXPECT_EQ(contents(env, dir.path()), contents(model));
}

TEST(Journal, IsReadAsWrittenAndDamageIsSeen) {
  io::FaultEnv env;
  const delta::Paths paths("/m");
  ASSERT_TRUE(env.create_directories(paths.lathe).ok());
  EXPECT_FALSE(read_journal(env, paths).value());
  const Journal journal{
      .from_version = 3,
      .to_version = 9,
      .file = "model.safetensors",
      .blocks = {{.offset = 4096, .bytes = std::vector<std::byte>(100, std::byte{7})}, {.offset = 9000, .bytes = {}}}};
  ASSERT_TRUE(write_journal(env, paths, journal).ok());
  const auto read = read_journal(env, paths);
  ASSERT_TRUE(read.ok() && *read);
  EXPECT_EQ((*read)->to_version, 9);
  EXPECT_EQ((*read)->file, journal.file);
  ASSERT_EQ((*read)->blocks.size(), 2U);
  EXPECT_EQ((*read)->blocks[0].bytes, journal.blocks[0].bytes);
  std::vector<std::byte> bytes(300);
  (*read)->lay_over(4000, bytes);
  EXPECT_EQ(bytes[95], std::byte{0});
  EXPECT_EQ(bytes[96], std::byte{7});
  EXPECT_EQ(bytes[195], std::byte{7});
  EXPECT_EQ(bytes[196], std::byte{0});
  const size_t size = io::read_text(env, paths.journal)->size();
  for (size_t at = 0; at < size; ++at) {
    env.damage(paths.journal, at, std::byte{0x10});
    ASSERT_FALSE(read_journal(env, paths).ok()) << "byte " << at;
    env.damage(paths.journal, at, std::byte{0x10});
  }
}

TEST(Lock, OneProcessPerDirectory) {
  const delta::TestDir dir;
  EXPECT_EQ(delta::lock_directory(io::posix_env(), dir.path()).error().code, Code::kNotFound) << "no model directory";
  EXPECT_FALSE(*io::posix_env().exists(dir.path() + "/.lathe")) << "nothing is created where no model is";
  ASSERT_TRUE(io::write_text_atomically(io::posix_env(), dir.path() + "/model.safetensors", "").ok());
  const auto first = delta::lock_directory(io::posix_env(), dir.path());
  ASSERT_TRUE(first.ok());
  const auto second = delta::lock_directory(io::posix_env(), dir.path());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, Code::kConflict);
  EXPECT_EQ(delta::lock_directory(io::posix_env(), dir.path() + "/none").error().code, Code::kNotFound);
}

}  // namespace
}  // namespace lathe::history
