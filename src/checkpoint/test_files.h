// Files in memory and weights with known statistics, for the tests, the fuzz targets and the tools of this module.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "checkpoint/delta.h"
#include "io/env.h"

namespace lathe::checkpoint {

using Bytes = std::vector<std::byte>;

class MemorySink final : public io::WritableFile {
 public:
  Status append(std::span<const std::byte> bytes) override {
    data.insert(data.end(), bytes.begin(), bytes.end());
    return {};
  }
  Status sync() override { return {}; }
  Status close() override { return {}; }

  Bytes data;
};

class MemorySource final : public io::RandomAccessFile {
 public:
  explicit MemorySource(Bytes bytes) : bytes_(std::move(bytes)) {}
  uint64_t size() const override { return bytes_.size(); }
  Status read_at(uint64_t offset, std::span<std::byte> out) const override {
    if (offset > bytes_.size() || out.size() > bytes_.size() - offset) return corruption("truncated");
    std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return {};
  }

 private:
  Bytes bytes_;
};

inline Result<DeltaReader> open_bytes(const Bytes& bytes) {
  return DeltaReader::open(std::make_unique<MemorySource>(bytes));
}

// Weights as training leaves them: normal numbers in bf16, moved by normal steps with stochastic rounding.
struct TrainedWeights {
  std::vector<uint16_t> before, after;

  TrainedWeights(size_t count, double sigma, double step, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    const auto bits = [](float x) { return std::bit_cast<uint32_t>(x); };
    for (size_t i = 0; i < count; ++i) {
      before.push_back(static_cast<uint16_t>(bits(static_cast<float>(sigma) * normal(random)) >> 16));
      const float moved =
          std::bit_cast<float>(uint32_t{before.back()} << 16) + static_cast<float>(step) * normal(random);
      after.push_back(static_cast<uint16_t>((bits(moved) + (random() & 0xFFFFU)) >> 16));
    }
  }
};

}  // namespace lathe::checkpoint
