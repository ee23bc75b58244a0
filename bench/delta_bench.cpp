// What a sync costs: bytes of a delta file compared with the usual ways and the entropy bound, and the codec's speed
// per core.
//
// usage: delta_bench MODEL.safetensors TRACE_DIR [LEARNING_RATE/STEPS]
//                                  the table over TRACE_DIR/LEARNING_RATE/STEPS.safetensors, or one row of it
//        delta_bench synthetic     normal weights moved by normal steps, for machines without a trace
// bench/delta.sh makes the trace and runs the first. Speeds are of one thread, in bytes of weights per second of its
// processor time, best of three: encoding hashes both sides, compares, codes and checksums; decoding checks, decodes
// and hashes. Reading and writing files is not in them.
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "codec/bytes.h"
#include "codec/ulp.h"
#include "delta/delta_reader.h"
#include "delta/delta_writer.h"
#include "delta/safetensors.h"
#include "delta/test_files.h"
#include "io/env.h"

namespace lathe::delta {
namespace {

using codec::append_varint;
using codec::BFloat16;
using codec::Direction;
using codec::ElementType;
using codec::load;
using View = std::span<const std::byte>;

constexpr int kRepeats = 3;

double processor_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

template <class Work>
double best_seconds(Work&& work) {
  double best = 1e9;
  for (int i = 0; i < kRepeats; ++i) {
    const double begin = processor_seconds();
    work();
    best = std::min(best, processor_seconds() - begin);
  }
  return best;
}

// GB/s at which one core copies tiles from memory to memory.
double copy_rate(View from) {
  Bytes to(from.size());
  const double seconds = best_seconds([&] {
    for (size_t at = 0; at < from.size(); at += kTileBytes)
      std::memcpy(&to[at], &from[at], std::min<size_t>(kTileBytes, from.size() - at));
  });
  return static_cast<double>(from.size()) / seconds / 1e9;
}

uint64_t zstd_size(View bytes) {
  Bytes out(ZSTD_compressBound(bytes.size()));
  return ZSTD_compress(out.data(), out.size(), bytes.data(), bytes.size(), 1);
}

uint64_t changed_blocks(View before, View after) {
  uint64_t bytes = 0;
  for (size_t at = 0; at < before.size(); at += kBlockBytes) {
    const size_t size = std::min<size_t>(kBlockBytes, before.size() - at);
    if (std::memcmp(&before[at], &after[at], size) != 0) bytes += size;
  }
  return bytes;
}

uint64_t xor_zstd(View before, View after) {
  Bytes changes(before.size());
  for (size_t i = 0; i < changes.size(); ++i) changes[i] = before[i] ^ after[i];
  return zstd_size(changes);
}

// As PULSE does: gaps between changed elements and their new values. Given its best: gaps in as few bytes as they need,
// values in planes, zstd over each.
uint64_t gaps_and_values(View before, View after) {
  Bytes gaps, low, high;
  size_t previous = 0;
  for (size_t i = 0; i < before.size() / 2; ++i) {
    const auto value = load<uint16_t>(after.data(), i);
    if (value == load<uint16_t>(before.data(), i)) continue;
    append_varint(gaps, i - previous);
    low.push_back(static_cast<std::byte>(value));
    high.push_back(static_cast<std::byte>(value >> 8));
    previous = i;
  }
  return zstd_size(gaps) + zstd_size(low) + zstd_size(high);
}

// Bytes that no code can go below which tells each step given the exponent of the old value and nothing else: the
// empirical entropy H(step | exponent), tables for free. Of one code for the whole model; and of a code of its own for
// each tile, which is less, since layers differ, and leaves out that each needs its tables.
struct Bound {
  double changed = 0;  // share of the elements
  double model = 0, tiles = 0;
};

// Counts (exponent, step) pairs of a stretch; forgets them by the pairs that it saw.
class StepCounter {
 public:
  void add(uint16_t from, uint16_t to) {
    const auto step = static_cast<uint16_t>(BFloat16::ordinal(to) - BFloat16::ordinal(from));
    const uint32_t pair = uint32_t{BFloat16::magnitude(from)} >> BFloat16::kMantissa << 16 | step;
    if (counts_[pair]++ == 0) seen_.push_back(pair);
    ++totals_[pair >> 16];
  }
  double bytes_and_reset() {
    double bits = 0;
    for (const uint32_t pair : seen_) {
      const double n = std::exchange(counts_[pair], 0);
      bits += n * std::log2(totals_[pair >> 16] / n);
    }
    seen_.clear();
    totals_.fill(0);
    return bits / 8;
  }

 private:
  std::vector<uint32_t> counts_ = std::vector<uint32_t>(size_t{256} << 16);
  std::array<double, 256> totals_{};
  std::vector<uint32_t> seen_;
};

Bound entropy_bound(View before, View after) {
  constexpr size_t kTile = kTileBytes / 2;
  StepCounter model, tile;
  Bound bound;
  const size_t n = before.size() / 2;
  size_t changed = 0;
  for (size_t i = 0; i < n; ++i) {
    const auto from = load<uint16_t>(before.data(), i), to = load<uint16_t>(after.data(), i);
    model.add(from, to);
    tile.add(from, to);
    changed += from != to;
    if (i % kTile == kTile - 1 || i == n - 1) bound.tiles += tile.bytes_and_reset();
  }
  bound.changed = static_cast<double>(changed) / static_cast<double>(n);
  bound.model = model.bytes_and_reset();
  return bound;
}

class ViewSource final : public io::RandomAccessFile {
 public:
  explicit ViewSource(View bytes) : bytes_(bytes) {}
  uint64_t size() const override { return bytes_.size(); }
  Status read_at(uint64_t offset, std::span<std::byte> out) const override {
    std::memcpy(out.data(), &bytes_[offset], out.size());
    return {};
  }

 private:
  View bytes_;
};

struct Speeds {
  uint64_t delta_bytes = 0;
  double encode = 0, forward = 0, backward = 0;  // GB/s
};

Result<Speeds> measure_codec(const FileLayout& layout, View before, View after) {
  WeightState state{.files = {{.layout = layout}}};
  const auto slice = [&](View bytes, uint64_t tile) {
    const ByteRange range = tile_range(layout, tile);
    return bytes.subspan(range.offset, range.size);
  };
  for (uint64_t tile = 0; tile < tile_count(layout); ++tile)
    state.files[0].tiles.push_back(hash_tile(slice(before, tile)));
  const auto load = [&](TileId id, std::span<std::byte>, std::span<std::byte>) -> Result<TileBytes> {
    return TileBytes{.before = slice(before, id.tile), .after = slice(after, id.tile)};
  };
  const double gigabytes = static_cast<double>(before.size()) / 1e9;
  Speeds speeds;
  MemorySink sink;
  sink.data.reserve(before.size());
  Status done;
  const auto encode = [&]() -> Status {
    sink.data.clear();
    auto writer = LATHE_TRY(DeltaWriter::create(sink, state, {.threads = 1, .verify = false}));
    LATHE_TRY(writer.add_all(load));
    speeds.delta_bytes = LATHE_TRY(writer.finish()).file_bytes;
    return {};
  };
  speeds.encode = gigabytes / best_seconds([&] { done = done.ok() ? encode() : done; });
  LATHE_TRY(std::move(done));

  const DeltaReader reader = LATHE_TRY(DeltaReader::open(std::make_unique<ViewSource>(sink.data)));
  Bytes out(kTileBytes);
  const auto decode = [&](Direction direction) -> Status {
    for (const DeltaTile& tile : reader.tiles()) {
      const View known = slice(direction == Direction::kForward ? before : after, tile.id.tile);
      LATHE_TRY(reader.decode_known(tile, direction, known, std::span(out).first(known.size())));
    }
    return {};
  };
  Status decoded;
  speeds.forward = gigabytes / best_seconds([&] { decoded = decoded.ok() ? decode(Direction::kForward) : decoded; });
  speeds.backward = gigabytes / best_seconds([&] { decoded = decoded.ok() ? decode(Direction::kBackward) : decoded; });
  LATHE_TRY(std::move(decoded));
  return speeds;
}

void print_head(double copy) {
  std::printf("One core copies memory at %.1f GB/s.\n\n", copy);
  std::printf(
      "| weights | changed | full copy | 4 KiB blocks | XOR + zstd -1 | gaps + values | bound | **delta** | of full | "
      "of bound | of the tiles' bounds | of the best other | encode GB/s | forward | backward |\n"
      "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
}

// One row: sizes in MB of all bytes of the file.
Status print_row(const std::string& name, const FileLayout& layout, View before, View after) {
  const View old_data = before.subspan(layout.data_offset), new_data = after.subspan(layout.data_offset);
  const auto mb = [](auto bytes) { return static_cast<double>(bytes) / 1e6; };
  const Bound bound = entropy_bound(old_data, new_data);
  const uint64_t blocks = changed_blocks(before, after), xored = xor_zstd(before, after),
                 pulse = gaps_and_values(old_data, new_data);
  const Speeds speeds = LATHE_TRY(measure_codec(layout, before, after));
  const auto delta = static_cast<double>(speeds.delta_bytes);
  const double best_other =
      static_cast<double>(std::min({before.size(), size_t{blocks}, size_t{xored}, size_t{pulse}}));
  std::printf(
      "| %s | %.2f %% | %.1f | %.1f | %.2f | %.2f | %.2f | **%.2f** | %.2f %% | %.3f | %.3f | %.2f | %.2f | %.2f | "
      "%.2f |\n",
      name.c_str(), 100 * bound.changed, mb(before.size()), mb(blocks), mb(xored), mb(pulse), mb(bound.model),
      mb(delta), 100 * delta / static_cast<double>(before.size()), delta / bound.model, delta / bound.tiles,
      delta / best_other, speeds.encode, speeds.forward, speeds.backward);
  std::fflush(stdout);
  return {};
}

Status run_trace(const std::string& model, const std::string& trace, const std::string& only) {
  io::Env& env = io::posix_env();
  const auto file = LATHE_TRY(env.map(model));
  const Bytes before(file->bytes().begin(), file->bytes().end());
  const Header header = LATHE_TRY(parse_header(before, before.size()).at(model));
  const FileLayout layout = layout_of("model.safetensors", before.size(), header);
  print_head(copy_rate(before));
  for (const char* rate : {"1e-6", "1e-5", "1e-4"}) {
    for (const char* steps : {"1", "10", "60"}) {
      const std::string row = std::string(rate) + "/" + steps;
      if (!only.empty() && row != only) continue;
      const auto after = LATHE_TRY(env.map(trace + "/" + row + ".safetensors"));
      const Bytes bytes(after->bytes().begin(), after->bytes().end());
      if (bytes.size() != before.size()) return invalid_argument("the trace is of another model than " + model);
      LATHE_TRY(print_row(std::string("lr ") + rate + ", " + steps + " steps", layout, before, bytes));
    }
  }
  return {};
}

Status run_synthetic() {
  constexpr size_t kCount = size_t{64} << 20;
  std::vector<uint16_t> before(kCount), after(kCount);
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  const auto bits = [](float x) { return std::bit_cast<uint32_t>(x); };
  for (uint16_t& weight : before) weight = static_cast<uint16_t>(bits(0.15F * normal(random)) >> 16);
  const View old_bytes = std::as_bytes(std::span(before));
  const FileLayout layout{
      .name = "m", .size = 2 * kCount, .runs = {{.end = 2 * kCount, .type = ElementType::kBFloat16}}};
  print_head(copy_rate(old_bytes));
  for (const float step : {0.0F, 3e-7F, 3e-6F, 2e-5F, 1e-4F, 1e-3F}) {
    for (size_t i = 0; i < kCount; ++i) {
      const float moved = std::bit_cast<float>(uint32_t{before[i]} << 16) + step * normal(random);
      after[i] = static_cast<uint16_t>((bits(moved) + (step > 0 ? random() & 0xFFFFU : 0)) >> 16);
    }
    LATHE_TRY(print_row("steps of " + std::to_string(step / 0.15F) + " sigma", layout, old_bytes,
                        std::as_bytes(std::span(after))));
  }
  return {};
}

}  // namespace
}  // namespace lathe::delta

int main(int argc, char** argv) {
  const bool synthetic = argc == 2 && std::strcmp(argv[1], "synthetic") == 0;
  if (!synthetic && argc != 3 && argc != 4) {
    std::fprintf(stderr,
                 "usage: delta_bench MODEL.safetensors TRACE_DIR [LEARNING_RATE/STEPS] | delta_bench synthetic\n");
    return 2;
  }
  const lathe::Status done =
      synthetic ? lathe::delta::run_synthetic() : lathe::delta::run_trace(argv[1], argv[2], argc == 4 ? argv[3] : "");
  if (done.ok()) return 0;
  std::fprintf(stderr, "delta_bench: %s\n", done.error().message.c_str());
  return 1;
}
