#include "data/plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>

namespace lathe::data {
namespace {

constexpr uint32_t kHeldOut = UINT32_MAX;  // a stream that is no epoch

// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

// Consecutive items of `order`, as many as the limits allow at a time.
Result<std::vector<ItemBatch>> cut(std::span<const int64_t> order, std::span<const int64_t> tokens,
                                   const PlanOptions& options) {
  std::vector<ItemBatch> batches;
  int64_t in_batch = 0;
  for (const int64_t item : order) {
    if (options.max_tokens > 0 && tokens[item] > options.max_tokens) {
      return invalid_argument("example " + std::to_string(item + 1) + " has " + std::to_string(tokens[item]) +
                              " tokens, more than the " + std::to_string(options.max_tokens) +
                              " that a batch may have; raise the limit, or shorten the example");
    }
    const bool full = !batches.empty() && (static_cast<int64_t>(batches.back().size()) == options.batch ||
                                           (options.max_tokens > 0 && in_batch + tokens[item] > options.max_tokens));
    if (batches.empty() || full) {
      batches.emplace_back();
      in_batch = 0;
    }
    batches.back().push_back(item);
    in_batch += tokens[item];
  }
  return batches;
}

}  // namespace

Status PlanOptions::validate() const {
  if (epochs < 1) return invalid_argument("epochs must be at least 1");
  if (batch < 1) return invalid_argument("batch must be at least 1");
  if (max_tokens < 0) return invalid_argument("max_tokens must be 0 (no limit) or more");
  if (accumulate < 1) return invalid_argument("accumulate must be at least 1");
  if (max_steps < 0) return invalid_argument("max_steps must be 0 (all) or more");
  return {};
}

std::vector<int64_t> shuffled(int64_t n, uint32_t seed, uint32_t stream) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  const uint64_t key = mix(uint64_t{seed} << 32 | stream);
  // Fisher and Yates. The remainder favours small numbers by less than n / 2^64.
  for (int64_t i = n - 1; i > 0; --i) {
    const uint64_t random = mix(key + static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15U);
    std::swap(order[i], order[static_cast<int64_t>(random % static_cast<uint64_t>(i + 1))]);
  }
  return order;
}

Result<std::vector<StepBatches>> plan(std::span<const int64_t> tokens, const PlanOptions& options) {
  LATHE_TRY(options.validate());
  const auto n = static_cast<int64_t>(tokens.size());
  if (n == 0) return invalid_argument("there is no example to learn from");
  std::vector<StepBatches> steps;
  for (int64_t epoch = 0; epoch < options.epochs; ++epoch) {
    const std::vector<int64_t> order = shuffled(n, options.seed, static_cast<uint32_t>(epoch));
    std::vector<ItemBatch> batches = LATHE_TRY(cut(order, tokens, options));
    for (size_t i = 0; i < batches.size(); ++i) {
      if (i % static_cast<size_t>(options.accumulate) == 0) {
        if (options.max_steps > 0 && static_cast<int64_t>(steps.size()) == options.max_steps) return steps;
        steps.emplace_back();
      }
      steps.back().push_back(std::move(batches[i]));
    }
  }
  return steps;
}

Result<std::vector<ItemBatch>> in_order(std::span<const int64_t> tokens, const PlanOptions& options) {
  std::vector<int64_t> order(tokens.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  return cut(order, tokens, options);
}

Result<std::vector<int64_t>> held_out(int64_t n, double fraction, uint32_t seed) {
  if (!(fraction > 0 && fraction < 1)) return invalid_argument("the fraction held out must be between 0 and 1");
  if (n < 2) return invalid_argument("one example cannot be both learned and held out");
  const int64_t count = std::clamp<int64_t>(std::llround(fraction * static_cast<double>(n)), 1, n - 1);
  std::vector<int64_t> items = shuffled(n, seed, kHeldOut);
  items.resize(count);
  std::sort(items.begin(), items.end());
  return items;
}

}  // namespace lathe::data
