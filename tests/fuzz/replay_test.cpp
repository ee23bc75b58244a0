// Runs a fuzz target without libFuzzer: on its seeds, on inputs that once failed, and on mutations of both, the same
// ones every time. `make fuzz` searches longer, guided by coverage and under sanitizers.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

// LATHE_FUZZ_SEEDS: a folder, or "" for a target that needs none.
std::vector<Bytes> seeds() {
  std::vector<Bytes> all = {{}};
  const std::string folder = LATHE_FUZZ_SEEDS;
  if (folder.empty()) return all;
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    all.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return all;
}

class Mutator {
 public:
  explicit Mutator(std::vector<Bytes> corpus) : corpus_(std::move(corpus)) {}

  Bytes next() {
    Bytes input = any();
    for (size_t n = 1 + below(8); n > 0; --n) mutate(input);
    return input;
  }

 private:
  const Bytes& any() { return corpus_[below(corpus_.size())]; }
  size_t below(size_t limit) { return limit == 0 ? 0 : random_() % limit; }
  auto at(Bytes& input, size_t position) { return input.begin() + static_cast<std::ptrdiff_t>(position); }

  void mutate(Bytes& input) {
    const size_t begin = below(input.size()), count = below(std::min<size_t>(input.size() - begin, 32) + 1);
    switch (below(6)) {
      case 0:  // flip a bit
        if (!input.empty()) input[begin] ^= static_cast<uint8_t>(1U << below(8));
        break;
      case 1:  // new bytes
        for (size_t n = below(16) + 1; n > 0; --n) input.insert(at(input, begin), static_cast<uint8_t>(random_()));
        break;
      case 2:
        input.erase(at(input, begin), at(input, begin + count));
        break;
      case 3: {  // say something twice
        const Bytes piece(at(input, begin), at(input, begin + count));
        input.insert(at(input, below(input.size() + 1)), piece.begin(), piece.end());
        break;
      }
      case 4: {  // a piece of another input
        Bytes other = any();
        const size_t from = below(other.size()), length = below(other.size() - from + 1);
        input.insert(at(input, begin), at(other, from), at(other, from + length));
        break;
      }
      default:
        input.resize(begin);
    }
  }

  std::vector<Bytes> corpus_;
  std::minstd_rand random_{1};
};

void run(const Bytes& input) {
  SCOPED_TRACE(::testing::PrintToString(std::string(input.begin(), input.end())));
  LLVMFuzzerTestOneInput(input.data(), input.size());
}

TEST(Fuzz, Seeds) {
  for (const Bytes& seed : seeds()) run(seed);
}

TEST(Fuzz, Mutations) {
  Mutator mutator(seeds());
  constexpr int kRuns = 1 << 20;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  int runs = 0;
  for (; runs < kRuns && std::chrono::steady_clock::now() < end; ++runs) run(mutator.next());
  RecordProperty("runs", runs);
  EXPECT_GT(runs, 100) << "too slow to be of use";
}

}  // namespace
