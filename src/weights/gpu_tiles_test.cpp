// Weights on a GPU as a sync sees them: hashes to the bit as on the CPU, whatever a tile is made of, and only changed
// tiles cross the bus. Without a GPU every test skips itself.
#include "weights/gpu_tiles.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <random>

#include "delta/model_dir.h"
#include "delta/test_dir.h"
#include "delta/tile.h"
#include "gpu/device.h"
#include "weights/live_tensors.h"

namespace lathe::weights {
namespace {

using Hash128;
using kTileBytes;

const Result<c10::Device>& device() {
  static const Result<c10::Device> opened = gpu::open("cuda");
  return opened;
}

std::span<const std::byte> bytes(const at::Tensor& t) {
  return {static_cast<const std::byte*>(t.const_data_ptr()), t.nbytes()};
}

class GpuTiles : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!device().ok()) GTEST_SKIP() << device().error().message;
    at::manual_seed(7);
    memory_ = at::randint(0, 256, {9'000'001}, at::TensorOptions().dtype(at::kByte));
    there_ = memory_.to(*device());
  }

  // The tile's bytes on the CPU.
  std::vector<std::byte> gather(const std::vector<gpu_tiles::Range>& tile) const {
    std::vector<std::byte> out;
    for (const auto& range : tile) {
      const auto piece = bytes(memory_).subspan(range.offset, range.size);
      out.insert(out.end(), piece.begin(), piece.end());
    }
    return out;
  }

  void expect_same(const std::vector<std::vector<gpu_tiles::Range>>& tiles) const {
    const auto hashes = gpu_tiles::hash_tiles(tiles);
    ASSERT_TRUE(hashes.ok()) << hashes.error().message;
    ASSERT_EQ(hashes->size(), tiles.size());
    for (size_t i = 0; i < tiles.size(); ++i) {
      EXPECT_EQ((*hashes)[i], hash_tile(gather(tiles[i]))) << "tile " << i;
    }
  }

  at::Tensor memory_, there_;  // the same bytes
};

// Whole tiles and short ones, at addresses of every alignment.
TEST_F(GpuTiles, HashOfOnePiece) {
  std::vector<std::vector<gpu_tiles::Range>> tiles;
  for (const uint64_t size :
       {uint64_t{1}, uint64_t{4095}, uint64_t{4096}, uint64_t{5000}, kTileBytes - 2, kTileBytes}) {
    for (const uint64_t offset : {0, 16, 4096, 8, 2, 1}) tiles.push_back({{&there_, offset, size}});
  }
  expect_same(tiles);
}

// Pieces from single bytes to megabytes, whose edges fall inside blocks and inside loads.
TEST_F(GpuTiles, HashOfManyPieces) {
  std::mt19937_64 random(3);
  std::vector<std::vector<gpu_tiles::Range>> tiles;
  for (int i = 0; i < 40; ++i) {
    auto& tile = tiles.emplace_back();
    for (uint64_t left = i % 2 ? kTileBytes : 1 + random() % kTileBytes; left > 0;) {
      const uint64_t most = std::min<uint64_t>(left, uint64_t{1} << (random() % 22));
      const uint64_t size = 1 + random() % most,
                     offset = random() % 6'000'000 / (random() % 3 ? 16 : 1) * 16 % 6'000'000;
      tile.push_back({&there_, offset, size});
      left -= size;
    }
  }
  expect_same(tiles);
}

TEST_F(GpuTiles, Read) {
  std::vector<std::byte> out(5'000'000);
  ASSERT_TRUE(gpu_tiles::read({&there_, 123'457, out.size()}, out).ok());
  EXPECT_TRUE(std::ranges::equal(out, bytes(memory_).subspan(123'457, out.size())));
}

// The weights, counted as they cross the bus.
class Counted final : public delta::TensorReader {
 public:
  explicit Counted(const WeightStore& store) : live_(store) {}
  std::optional<uint64_t> size(std::string_view tensor) const override { return live_.size(tensor); }
  Status read(std::string_view tensor, uint64_t offset, std::span<std::byte> out) const override {
    crossed += out.size();
    return live_.read(tensor, offset, out);
  }
  bool hashes_in_place() const override { return live_.hashes_in_place(); }
  Result<std::vector<Hash128>> hash_tiles(std::span<const std::vector<delta::TensorRange>> tiles) const override {
    return live_.hash_tiles(tiles);
  }

  mutable std::atomic<uint64_t> crossed = 0;

 private:
  LiveTensors live_;
};

TEST_F(GpuTiles, OnlyChangedTilesOfAModelCrossTheBus) {
  // Fused rows, a small tensor between large ones, and one tensor that is not the server's.
  const delta::TestDir dir;
  const at::Tensor fused = at::randn({3000, 1000}).to(at::kBFloat16), norm = at::randn({333}).to(at::kBFloat16);
  std::vector<delta::TensorInfo> infos = {{.name = "a.norm", .dtype = delta::Dtype::kBF16, .shape = {333}},
                                          {.name = "k", .dtype = delta::Dtype::kBF16, .shape = {1000, 1000}},
                                          {.name = "other", .dtype = delta::Dtype::kU8, .shape = {77}},
                                          {.name = "q", .dtype = delta::Dtype::kBF16, .shape = {2000, 1000}}};
  std::string file = delta::format_header(infos, {});
  const auto append = [&](const at::Tensor& t) {
    file.append(reinterpret_cast<const char*>(bytes(t).data()), t.nbytes());
  };
  append(norm);
  append(fused.narrow(0, 2000, 1000));
  file.append(77, 'x');
  append(fused.narrow(0, 0, 2000));
  dir.write("model.safetensors", file);

  WeightStore store;
  store.add("qk", fused.to(*device()), {{"q", 2000}, {"k", 1000}}, false);
  store.add("a.norm", norm.to(*device()), {{"a.norm", 333}}, false);
  const Counted live(store);
  ASSERT_TRUE(live.hashes_in_place());
  const std::vector<std::string> names = {"model.safetensors"};
  const auto state = delta::hash_files(io::posix_env(), dir.path(), names);
  ASSERT_TRUE(state.ok());
  const auto source = delta::TensorSource::open(io::posix_env(), dir.path(), *state, live);
  ASSERT_TRUE(source.ok()) << source.error().message;
  const auto changed = [&] {
    size_t at = 0;
    return delta::changed_tiles(*source, *state, 1000, 2, at).value();
  };
  EXPECT_TRUE(changed().empty());
  EXPECT_LT(live.crossed, 2 * kTileBytes) << "only the tile that other data share";

  live.crossed = 0;
  const Part* q = store.find_part("q");
  q->data[1999][999].fill_(5.0);
  gpu::synchronize(*device());
  const auto one = changed();
  ASSERT_EQ(one.size(), 1U);
  EXPECT_EQ(one[0].tile, state->tiles() - 1);
  std::vector<std::byte> scratch(kTileBytes);
  const auto read = source->read(one[0], scratch);
  ASSERT_TRUE(read.ok());
  const at::Tensor expected = q->data.cpu();
  EXPECT_TRUE(std::ranges::equal(*read, bytes(expected).last(read->size())));
}

}  // namespace
}  // namespace lathe::weights
