// Weights with known statistics, for tests, fuzz targets and benchmarks.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace lathe::codec {

using Bytes = std::vector<std::byte>;

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

}  // namespace lathe::codec
