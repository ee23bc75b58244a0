// Tiles: every byte in exactly one, elements never cut, and hashes as the format page defines them.
#include "delta/tile.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace lathe::delta {
namespace {

TEST(Tile, EveryByteBelongsToOneTile) {
  for (const uint64_t offset : {uint64_t{0}, uint64_t{8}, kTileBytes - 1, kTileBytes, 3 * kTileBytes + 5}) {
    for (const uint64_t data : {uint64_t{0}, uint64_t{1}, kTileBytes, 2 * kTileBytes + 7}) {
      const FileLayout layout{.size = offset + data, .data_offset = offset};
      uint64_t next = 0;
      for (uint64_t tile = 0; tile < tile_count(layout); ++tile) {
        const ByteRange range = tile_range(layout, tile);
        EXPECT_EQ(range.offset, next);
        EXPECT_GT(range.size, 0U);
        EXPECT_LE(range.size, kTileBytes);
        EXPECT_FALSE(range.offset < offset && range.offset + range.size > offset) << "head and data in one tile";
        next += range.size;
      }
      EXPECT_EQ(next, layout.size);
    }
  }
}

TEST(Tile, PartsCoverATileAndKeepElementsWhole) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    FileLayout layout{.data_offset = 16};
    uint64_t end = 0;
    for (uint64_t n = 1 + random() % 6; n > 0; --n) {
      end += 1 + random() % kTileBytes;
      layout.runs.push_back({.end = end, .type = static_cast<codec::ElementType>(random() % 6)});
    }
    layout.size = 16 + end;
    for (uint64_t tile = 1; tile < tile_count(layout); ++tile) {
      uint64_t next = 0;
      for (const codec::TilePart& part : tile_parts(layout, tile)) {
        ASSERT_EQ(part.offset, next);
        ASSERT_GT(part.size, 0U);
        ASSERT_EQ(part.size % codec::element_size(part.type), 0U);
        if (part.type != codec::ElementType::kBytes) {  // at a multiple of its size from its run's begin
          const uint64_t at = tile_range(layout, tile).offset - 16 + part.offset;
          uint64_t begin = 0;
          for (const TypeRun& run : layout.runs) {
            if (at < run.end) break;
            begin = run.end;
          }
          ASSERT_EQ((at - begin) % codec::element_size(part.type), 0U);
        }
        next += part.size;
      }
      ASSERT_EQ(next, tile_range(layout, tile).size);
    }
  }
}

TEST(Tile, LayoutJoinsTensorsOfOneType) {
  const Header header{.tensors = {{.name = "a", .dtype = Dtype::kBF16, .begin = 0, .end = 10},
                                  {.name = "b", .dtype = Dtype::kBF16, .begin = 10, .end = 20},
                                  {.name = "none", .dtype = Dtype::kF32, .begin = 20, .end = 20},
                                  {.name = "c", .dtype = Dtype::kI64, .begin = 20, .end = 36}},
                      .data_offset = 64};
  const FileLayout layout = layout_of("m", 100, header);
  EXPECT_EQ(layout.runs, (std::vector<TypeRun>{{.end = 20, .type = codec::ElementType::kBFloat16},
                                               {.end = 36, .type = codec::ElementType::kWord32}}));
  EXPECT_TRUE(check(layout).ok());
}

TEST(Hash, OfATileIsThatOfItsPaddedBlocks) {
  std::vector<std::byte> tile(10'000, std::byte{7}), padded = tile, blocks;
  padded.resize(kTileBytes);
  for (uint64_t at = 0; at < kTileBytes; at += kBlockBytes) {
    const Hash128 hash = checksum128(std::span(padded).subspan(at, kBlockBytes));
    const auto bytes = std::as_bytes(std::span(&hash, 1));
    blocks.insert(blocks.end(), bytes.begin(), bytes.end());
  }
  EXPECT_EQ(hash_tile(tile), checksum128(blocks));
  EXPECT_EQ(hash_tile(tile), hash_tile(padded));
  Checksum128 pieces;
  pieces.update(std::span(tile).first(3));
  pieces.update(std::span(tile).subspan(3));
  EXPECT_EQ(pieces.finish(), checksum128(tile));
}

TEST(Hash, KnownAnswers) {
  // XXH3-128 and XXH3-64 of nothing, from the algorithm's own test vectors; BLAKE3 likewise.
  EXPECT_EQ(checksum128({}), (Hash128{.low = 0x6001c324468d497fU, .high = 0x99aa06d3014798d8U}));
  EXPECT_EQ(checksum64({}), 0x2d06800538d394c2U);
  EXPECT_EQ(Blake3().finish().hex(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
  Blake3 abc;
  abc.update(std::as_bytes(std::span("abc", 3)));
  EXPECT_EQ(abc.finish().hex(), "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85");
  EXPECT_EQ(Root::from_hex(abc.finish().hex()).value(), abc.finish());
  EXPECT_FALSE(Root::from_hex("xyz").ok());
}

TEST(State, RootDependsOnEverything) {
  WeightState state;
  state.files.push_back(
      {.layout = {.name = "m", .size = 10, .data_offset = 4, .runs = {{.end = 6, .type = codec::ElementType::kBytes}}},
       .tiles = {{.low = 1}, {.low = 2}}});
  ASSERT_TRUE(check(state).ok());
  const Root root = state.root();
  const auto differs = [&](auto change) {
    WeightState other = state;
    change(other.files[0]);
    EXPECT_NE(other.root(), root);
  };
  differs([](FileState& f) { f.layout.name = "n"; });
  differs([](FileState& f) { f.layout.size = 11; });
  differs([](FileState& f) { f.layout.data_offset = 5; });
  differs([](FileState& f) { f.tiles[1].high = 1; });
  differs([](FileState& f) { std::swap(f.tiles[0], f.tiles[1]); });
}

}  // namespace
}  // namespace lathe::delta
