// Delta files: both ways between two states, refusals that name the thing, every damaged byte found, memory bounded.
#include "delta/delta_reader.h"
#include "delta/delta_writer.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstring>

#include "delta/source.h"
#include "delta/test_dir.h"
#include "delta/test_files.h"

namespace lathe::delta {
namespace {

// Files in memory, before and after.
struct Change {
  WeightState from;
  std::vector<codec::Bytes> before, after;

  void add(const std::string& name, uint64_t data_offset, std::vector<TypeRun> runs, codec::Bytes old_bytes,
           codec::Bytes new_bytes) {
    FileState file{
        .layout = {.name = name, .size = old_bytes.size(), .data_offset = data_offset, .runs = std::move(runs)}};
    for (uint64_t tile = 0; tile < tile_count(file.layout); ++tile)
      file.tiles.push_back(hash_tile(slice(old_bytes, tile_range(file.layout, tile))));
    from.files.push_back(std::move(file));
    before.push_back(std::move(old_bytes));
    after.push_back(std::move(new_bytes));
  }

  static std::span<const std::byte> slice(const codec::Bytes& bytes, ByteRange range) {
    return std::span(bytes).subspan(range.offset, range.size);
  }

  TileLoader loader() const {
    return [this](TileId id, std::span<std::byte>, std::span<std::byte>) -> Result<TileBytes> {
      const ByteRange range = tile_range(from.files[id.file].layout, id.tile);
      return TileBytes{.before = slice(before[id.file], range), .after = slice(after[id.file], range)};
    };
  }
};

codec::Bytes pattern(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  codec::Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// Two files of several tiles: weights that moved, a head that changed in one byte, a file with an fp32 tail.
Change two_files() {
  Change change;
  const codec::TrainedWeights weights(2'500'000, 0.02, 1e-5, 1);
  const auto with_head = [](const codec::Bytes& head, const std::vector<uint16_t>& values) {
    codec::Bytes out = head;
    const auto bytes = std::as_bytes(std::span(values));
    out.insert(out.end(), bytes.begin(), bytes.end());
    return out;
  };
  codec::Bytes head = pattern(1001, 2), new_head = head;
  new_head[500] ^= std::byte{4};
  change.add("a.safetensors", head.size(), {{.end = 5'000'000, .type = codec::ElementType::kBFloat16}},
             with_head(head, weights.before), with_head(new_head, weights.after));
  codec::Bytes tail = pattern(3'000'000, 3), new_tail = tail;
  new_tail[2'999'999] ^= std::byte{1};
  change.add("b.safetensors", 8,
             {{.end = 2'000'001, .type = codec::ElementType::kWord16},
              {.end = 2'999'992, .type = codec::ElementType::kFloat32}},
             tail, new_tail);
  return change;
}

constexpr DeltaOptions kOptions = {.from_version = 7, .to_version = 8, .time_ms = 1'700'000'000'123, .threads = 2};

codec::Bytes write(const Change& change, const std::vector<std::pair<std::string, std::string>>& attachments = {},
                   const DeltaOptions& options = kOptions) {
  MemorySink sink;
  auto writer = DeltaWriter::create(sink, change.from, options);
  EXPECT_TRUE(writer->add_all(change.loader()).ok());
  for (const auto& [name, text] : attachments) EXPECT_TRUE(writer->attach(name, std::as_bytes(std::span(text))).ok());
  const auto report = writer->finish();
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report->file_bytes, sink.data.size());
  return sink.data;
}

std::string refusal(const codec::Bytes& bytes) {
  const auto reader = open_bytes(bytes);
  if (!reader.ok()) return reader.error().message;
  const Status verified = reader->verify();
  return verified.ok() ? "" : verified.error().message;
}

TEST(Delta, LeadsBothWays) {
  const Change change = two_files();
  const auto reader = open_bytes(write(change, {{"optimizer", std::string(3'000'000, 'x')}, {"empty", ""}}));
  ASSERT_TRUE(reader.ok()) << reader.error().message;
  EXPECT_EQ(reader->info().from_version, 7);
  EXPECT_EQ(reader->info().to_version, 8);
  EXPECT_EQ(reader->info().time_ms, 1'700'000'000'123);
  EXPECT_EQ(reader->info().from_root, change.from.root());
  EXPECT_EQ(reader->tiles().size(), 5U);  // a: head and three tiles of data; b: the second of its two
  EXPECT_EQ(reader->files()[1], change.from.files[1].layout);

  WeightState to = change.from;
  for (const DeltaTile& tile : reader->tiles()) {
    const ByteRange range = tile_range(reader->files()[tile.id.file], tile.id.tile);
    const auto before = Change::slice(change.before[tile.id.file], range),
               after = Change::slice(change.after[tile.id.file], range);
    codec::Bytes out(range.size);
    ASSERT_TRUE(reader->decode(tile, codec::Direction::kForward, before, out).ok());
    EXPECT_TRUE(std::equal(out.begin(), out.end(), after.begin()));
    ASSERT_TRUE(reader->decode(tile, codec::Direction::kBackward, after, out).ok());
    EXPECT_TRUE(std::equal(out.begin(), out.end(), before.begin()));
    EXPECT_EQ(reader->decode(tile, codec::Direction::kBackward, before, out).error().code, Code::kConflict);
    EXPECT_EQ(reader->find(tile.id)->offset, tile.offset);
    to.files[tile.id.file].tiles[tile.id.tile] = hash_tile(after);
  }
  EXPECT_EQ(reader->info().to_root, to.root());
  EXPECT_EQ(*reader->follow(change.from, codec::Direction::kForward), to);
  EXPECT_EQ(*reader->follow(to, codec::Direction::kBackward), change.from);
  EXPECT_EQ(reader->find({.file = 1, .tile = 0}), nullptr);
  EXPECT_TRUE(reader->verify().ok());
  EXPECT_EQ(*reader->attachment_text(*reader->find_attachment("optimizer")), std::string(3'000'000, 'x'));
  EXPECT_EQ(*reader->attachment_text(*reader->find_attachment("empty")), "");
  EXPECT_EQ(reader->attachment_text(*reader->find_attachment("optimizer"), 100).error().code, Code::kInvalidArgument);
}

TEST(Delta, ThreadsDoNotChangeTheFile) {
  const Change change = two_files();
  DeltaOptions options = kOptions;
  options.threads = 1;
  EXPECT_EQ(write(change), write(change, {}, options));
}

TEST(Delta, OfNothingIsSmallAndLeadsNowhere) {
  Change change = two_files();
  change.after = change.before;
  const codec::Bytes bytes = write(change);
  EXPECT_LT(bytes.size(), 500U);
  const auto reader = open_bytes(bytes);
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(reader->tiles().size(), 0U);
  EXPECT_EQ(reader->info().from_root, reader->info().to_root);
  EXPECT_EQ(*reader->follow(change.from, codec::Direction::kForward), change.from);

  MemorySink sink;  // of no files at all
  auto writer = DeltaWriter::create(sink, {}, kOptions);
  ASSERT_TRUE(writer->finish().ok());
  EXPECT_TRUE(open_bytes(sink.data).ok());
}

TEST(Delta, RefusesAnotherBase) {
  Change change = two_files();
  const auto reader = open_bytes(write(change));
  WeightState other = change.from;
  other.files[0].tiles[2].low ^= 1U;
  EXPECT_NE(reader->follow(other, codec::Direction::kForward).error().message.find("a.safetensors tile 2 (bytes "),
            std::string::npos);
  other = change.from;
  other.files[1].tiles[0].low ^= 1U;  // a tile that the delta does not change
  EXPECT_EQ(reader->follow(other, codec::Direction::kForward).error().code, Code::kConflict);
  other = change.from;
  other.files[1].layout.runs = {{.end = 2'999'992, .type = codec::ElementType::kBytes}};
  EXPECT_NE(reader->follow(other, codec::Direction::kForward).error().message.find("b.safetensors"), std::string::npos);

  change.before[0][5000] ^= std::byte{1};  // the directory no longer matches the state
  MemorySink sink;
  auto writer = DeltaWriter::create(sink, change.from, kOptions);
  const Status added = writer->add_all(change.loader());
  EXPECT_EQ(added.error().code, Code::kConflict);
  EXPECT_NE(added.error().message.find("a.safetensors tile 1"), std::string::npos) << added.error().message;
}

TEST(Delta, RefusesMisuse) {
  const Change change = two_files();
  MemorySink sink;
  auto writer = DeltaWriter::create(sink, change.from, kOptions);
  const std::vector<TileId> unordered = {{0, 1}, {0, 0}}, missing = {{0, 99}}, once = {{0, 2}};
  EXPECT_FALSE(writer->add(unordered, change.loader()).ok());
  EXPECT_FALSE(writer->add(missing, change.loader()).ok());
  EXPECT_TRUE(writer->add(once, change.loader()).ok());
  EXPECT_FALSE(writer->add(once, change.loader()).ok());
  EXPECT_FALSE(writer->append_attachment({}).ok());
  EXPECT_TRUE(writer->attach("x", {}).ok());
  EXPECT_FALSE(writer->attach("x", {}).ok());
  EXPECT_FALSE(writer->add(std::vector<TileId>{{1, 0}}, change.loader()).ok());
  EXPECT_TRUE(writer->finish().ok());
  EXPECT_FALSE(writer->finish().ok());

  WeightState unsorted = change.from;
  std::swap(unsorted.files[0], unsorted.files[1]);
  EXPECT_EQ(DeltaWriter::create(sink, unsorted, kOptions).error().code, Code::kInvalidArgument);
}

TEST(Delta, PassesOnFailuresOfTheDiskAndOfTheLoader) {
  class FullDisk final : public io::WritableFile {
   public:
    Status append(std::span<const std::byte> bytes) override {
      left_ -= static_cast<int64_t>(bytes.size());
      return left_ < 0 ? Status(io_error("cannot write", ENOSPC)) : Status();
    }
    Status sync() override { return {}; }
    Status close() override { return {}; }

   private:
    int64_t left_ = 4000;
  };
  const Change change = two_files();
  FullDisk disk;
  auto writer = DeltaWriter::create(disk, change.from, kOptions);
  EXPECT_EQ(writer->add_all(change.loader()).error().native, ENOSPC);

  MemorySink sink;
  auto other = DeltaWriter::create(sink, change.from, kOptions);
  const auto fails = [](TileId id, std::span<std::byte>, std::span<std::byte>) -> Result<TileBytes> {
    return id.tile == 0 ? Result<TileBytes>(TileBytes{}) : Result<TileBytes>(not_found("gone"));
  };
  EXPECT_FALSE(other->add_all(fails).ok());
}

// A small delta with all there is: three tiles of two files, two attachments.
codec::Bytes small_delta() {
  Change change;
  const codec::TrainedWeights weights(600, 0.02, 1e-4, 4);
  const auto bytes = [](const std::vector<uint16_t>& values) {
    const auto view = std::as_bytes(std::span(values));
    return codec::Bytes(view.begin(), view.end());
  };
  change.add("m.safetensors", 0, {{.end = 1200, .type = codec::ElementType::kBFloat16}}, bytes(weights.before),
             bytes(weights.after));
  change.add("n.safetensors", 60, {{.end = 20, .type = codec::ElementType::kFloat32}}, pattern(80, 5), pattern(80, 6));
  return write(change, {{"note", "hello"}, {"state", "world"}});
}

TEST(Delta, EveryChangedByteIsFound) {
  const codec::Bytes good = small_delta();
  ASSERT_EQ(refusal(good), "");
  for (size_t i = 0; i < good.size(); ++i) {
    for (const int flip : {1, 128, 255}) {
      codec::Bytes bad = good;
      bad[i] ^= static_cast<std::byte>(flip);
      ASSERT_NE(refusal(bad), "") << "byte " << i << " of " << good.size();
    }
  }
}

TEST(Delta, EveryTruncationAndExtensionIsFound) {
  const codec::Bytes good = small_delta();
  for (size_t size = 0; size < good.size(); ++size)
    ASSERT_NE(refusal(codec::Bytes(good.begin(), good.begin() + static_cast<ptrdiff_t>(size))), "");
  codec::Bytes longer = good;
  longer.push_back(std::byte{0});
  EXPECT_NE(refusal(longer), "");
  longer.insert(longer.begin(), std::byte{0});
  EXPECT_NE(refusal(longer), "");
}

TEST(Delta, NamesWhatIsDamaged) {
  const codec::Bytes good = small_delta();
  const auto reader = open_bytes(good);
  codec::Bytes bad = good;
  bad[reader->tiles()[0].offset] ^= std::byte{1};
  EXPECT_EQ(refusal(bad), "the delta of m.safetensors tile 0 (bytes 0 to 1200) is damaged");
  bad = good;
  bad[reader->attachments()[1].offset] ^= std::byte{1};
  EXPECT_EQ(refusal(bad), "attachment state of the delta is damaged");
  bad = good;
  bad[30] ^= std::byte{1};
  EXPECT_EQ(refusal(bad), "its header is damaged");
  bad = good;
  bad[bad.size() - 200] ^= std::byte{1};
  EXPECT_EQ(refusal(bad), "its index is damaged");
  bad = good;
  bad[bad.size() - 100] ^= std::byte{1};
  EXPECT_EQ(refusal(bad), "its footer is damaged");
}

// Puts a value into the file and makes all checksums right again.
template <class Value>
codec::Bytes forged(codec::Bytes bytes, size_t offset, Value value) {
  std::memcpy(&bytes[offset], &value, sizeof(value));
  uint32_t header_size = 0;
  uint64_t index_offset = 0;
  const size_t footer = bytes.size() - 128;
  std::memcpy(&header_size, &bytes[12], 4);
  std::memcpy(&index_offset, &bytes[footer + 16], 8);
  const auto put = [&](size_t at, size_t begin, size_t end) {
    const uint64_t checksum = checksum64(std::span(bytes).subspan(begin, end - begin));
    std::memcpy(&bytes[at], &checksum, 8);
  };
  if (header_size >= 56 && header_size < footer) {
    put(header_size - 8, 0, header_size - 8);
    std::memcpy(&bytes[footer + 96], &bytes[header_size - 8], 8);
  }
  if (index_offset < footer) put(footer + 104, index_offset, footer);
  put(footer + 112, footer, footer + 112);
  return bytes;
}

TEST(Delta, ImpossibleCountsAreRefusedBeforeMemoryIsAsked) {
  const codec::Bytes good = small_delta();
  const size_t footer = good.size() - 128;
  ASSERT_EQ(refusal(forged(good, 40, uint32_t{2})), "");  // the number of files as it is: the forger works
  const auto refused = [&](size_t offset, auto value, const std::string& why) {
    const std::string said = refusal(forged(good, offset, value));
    EXPECT_NE(said.find(why), std::string::npos) << said;
  };
  refused(40, uint32_t{0xFFFFFFFF}, "");                           // files
  refused(48, uint32_t{0xFFFFFFFF}, "too early");                  // length of a name
  refused(48 + 4 + 13 + 16, uint32_t{0xFFFFFFFF}, "");             // runs
  refused(footer, uint64_t{1} << 62, "counts more");               // tiles
  refused(footer + 8, uint64_t{1} << 62, "counts more");           // attachments
  refused(footer + 16, uint64_t{1} << 62, "impossible position");  // the position of the index
  refused(footer + 24, uint64_t{1} << 62, "its footer says");      // the file's size
  uint64_t index = 0;
  std::memcpy(&index, &good[footer + 16], 8);
  ASSERT_GE(open_bytes(good)->tiles()[0].payload_size, 128U);    // two bytes of a varint
  refused(index, uint8_t{99}, "do not have");                    // a tile's file
  refused(index + 1, uint8_t{99}, "do not have");                // its number
  refused(index + 2, uint16_t{0x7FFF}, "larger than the file");  // its payload's size
  refused(index + 2, uint16_t{0x0180}, "account for");           // a little less than it is
  refused(index + 4, uint8_t{9}, "unknown mode");
  refused(footer - 65 + 4 + 4, ~uint64_t{0}, "larger than the file");  // an attachment's size
  refused(footer - 65, uint32_t{0xFFFFFFFF}, "too early");             // the length of its name
  for (const uint32_t version : {0U, 3U}) {
    refused(8, version, "format version " + std::to_string(version));
    EXPECT_EQ(open_bytes(forged(good, 8, version)).error().code, Code::kUnsupported);
  }
}

// The whole of a large model's delta passes through; only a few tiles per thread are held.
TEST(Delta, MemoryIsBounded) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers keep freed memory";
#endif
  class Nowhere final : public io::WritableFile {
   public:
    Status append(std::span<const std::byte>) override { return {}; }
    Status sync() override { return {}; }
    Status close() override { return {}; }
  };
  const auto peak = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss / 1024;  // MiB
  };
  constexpr uint64_t kTiles = 256;  // 512 MiB, the same tile again and again
  const codec::TrainedWeights weights(kTileBytes / 2, 0.02, 1e-4, 9);
  const auto before = std::as_bytes(std::span(weights.before)), after = std::as_bytes(std::span(weights.after));
  WeightState from;
  from.files.push_back({.layout = {.name = "m",
                                   .size = kTiles * kTileBytes,
                                   .runs = {{.end = kTiles * kTileBytes, .type = codec::ElementType::kBFloat16}}},
                        .tiles = std::vector(kTiles, hash_tile(before))});
  const int64_t at_start = peak();
  Nowhere nowhere;
  auto writer = DeltaWriter::create(nowhere, from, {.threads = 2, .verify = false});
  const auto load = [&](TileId, std::span<std::byte>, std::span<std::byte>) -> Result<TileBytes> {
    return TileBytes{.before = before, .after = after};
  };
  ASSERT_TRUE(writer->add_all(load).ok());
  EXPECT_LT(peak() - at_start, 100);
}

// Deltas of each format version as they were written when it was fixed; python/lathe_delta reads the same ones.
class CommittedDelta : public testing::TestWithParam<std::string> {};
TEST_P(CommittedDelta, IsReadForever) {
  const std::string folder = std::string(LATHE_SOURCE_DIR) + "/tests/golden/delta";
  const auto delta = DeltaReader::open(io::posix_env(), folder + "/" + GetParam() + ".dlt");
  ASSERT_TRUE(delta.ok()) << delta.error().message;
  EXPECT_TRUE(delta->verify().ok());
  std::vector<std::string> names;
  for (const FileLayout& layout : delta->files()) names.push_back(layout.name);
  const auto before = hash_files(io::posix_env(), folder + "/before", names);
  ASSERT_TRUE(before.ok()) << before.error().message;
  const auto after = delta->follow(*before, codec::Direction::kForward);
  ASSERT_TRUE(after.ok()) << after.error().message;
  EXPECT_EQ(delta->follow(*after, codec::Direction::kBackward)->root(), before->root());

  const auto source = FileSource::open(io::posix_env(), folder + "/before", *before);
  ASSERT_TRUE(source.ok());
  codec::Bytes scratch(kTileBytes);
  ASSERT_GE(delta->tiles().size(), 2U);
  for (const DeltaTile& tile : delta->tiles()) {
    const auto known = source->read(tile.id, scratch);
    ASSERT_TRUE(known.ok());
    codec::Bytes there(known->size()), back(known->size());
    ASSERT_TRUE(delta->decode(tile, codec::Direction::kForward, *known, there).ok());
    ASSERT_TRUE(delta->decode(tile, codec::Direction::kBackward, there, back).ok());
    EXPECT_TRUE(std::equal(back.begin(), back.end(), known->begin(), known->end()));
  }
}

INSTANTIATE_TEST_SUITE_P(Delta, CommittedDelta, testing::Values("version-1", "version-2"));

TEST(HashFiles, ReadsADirectoryAsItIs) {
  TestDir dir;
  dir.two_shards('x');
  const std::vector<std::string> names = {"model-2.safetensors", "model-1.safetensors"};
  const auto state = hash_files(io::posix_env(), dir.path(), names, 2);
  ASSERT_TRUE(state.ok()) << state.error().message;
  ASSERT_EQ(state->files.size(), 2U);
  EXPECT_EQ(state->files[0].layout.name, "model-1.safetensors");
  EXPECT_EQ(state->files[0].tiles.size(), 2U);  // head and data
  EXPECT_EQ(state->root(), hash_files(io::posix_env(), dir.path(), names, 1)->root());
  dir.two_shards('y');
  EXPECT_NE(state->root(), hash_files(io::posix_env(), dir.path(), names, 2)->root());
  const std::vector<std::string> missing = {"model-3.safetensors"};
  EXPECT_EQ(hash_files(io::posix_env(), dir.path(), missing).error().code, Code::kNotFound);
}

}  // namespace
}  // namespace lathe::delta
