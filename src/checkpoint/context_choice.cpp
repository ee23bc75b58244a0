#include "checkpoint/context_choice.h"

#include <cmath>
#include <numeric>
#include <utility>

namespace lathe::checkpoint {
namespace {

double n_log_n(uint64_t n) {
  return n < 2 ? 0 : static_cast<double>(n) * std::log2(static_cast<double>(n));
}

using Counts = std::array<uint32_t, kSymbols>;

// Bits of one context's symbols under the best code, and of its table.
double context_bits(const Counts& counts) {
  uint64_t total = 0;
  int present = 0;
  double bits = 0;
  for (const uint32_t n : counts) {
    if (n == 0) continue;
    total += n;
    bits -= n_log_n(n);
    ++present;
  }
  bits += n_log_n(total);
  return counts[0] == total ? 0 : bits + 8 * present;
}

}  // namespace

double histogram_bits(const Histogram& histogram) {
  double bits = 0;
  for (const Counts& counts : histogram.count) bits += context_bits(counts);
  return bits;
}

namespace {

// Elements by the contexts of their old and new values.
using Transitions = std::array<std::array<uint32_t, kContexts>, kContexts>;

// Bits of the old contexts given the new ones.
double transition_bits(const Transitions& transitions) {
  double bits = 0;
  for (uint32_t to = 0; to < kContexts; ++to) {
    uint64_t total = 0;
    for (uint32_t from = 0; from < kContexts; ++from) {
      total += transitions[from][to];
      bits -= n_log_n(transitions[from][to]);
    }
    bits += n_log_n(total);
  }
  return bits;
}

// What it costs to tell which elements changed their context.
double crossing_bits(const Transitions& transitions, bool sparse) {
  constexpr double kDistanceHelps = 0.55;  // what is left of transition_bits when the distance to the edge is known
  if (!sparse) return kDistanceHelps * transition_bits(transitions);
  uint64_t all = 0, crossed = 0;
  for (uint32_t from = 0; from < kContexts; ++from) {
    for (uint32_t to = 0; to < kContexts; ++to) {
      all += transitions[from][to];
      if (from != to) crossed += transitions[from][to];
    }
  }
  return n_log_n(all) - n_log_n(crossed) - n_log_n(all - crossed);  // their places, whatever their contexts
}

struct Merge {
  uint32_t merge = 0;
  double bits = 0;
};

Merge best_merge(const Histogram& histogram, Transitions transitions, bool sparse) {
  double bits = histogram_bits(histogram);
  Merge best{.bits = bits + crossing_bits(transitions, sparse)};
  Counts low = histogram.count[0];
  double low_bits = context_bits(low);
  for (uint32_t c = 1; c < kContexts; ++c) {
    bits -= low_bits + context_bits(histogram.count[c]);
    for (uint32_t s = 0; s < kSymbols; ++s) low[s] += histogram.count[c][s];
    low_bits = context_bits(low);
    bits += low_bits;
    // Row and column c - 1, which hold all below them, join c.
    for (uint32_t k = 0; k < kContexts; ++k) transitions[c][k] += std::exchange(transitions[c - 1][k], 0);
    for (uint32_t k = 0; k < kContexts; ++k) transitions[k][c] += std::exchange(transitions[k][c - 1], 0);
    const double all_bits = bits + crossing_bits(transitions, sparse);
    if (all_bits <= best.bits) best = {.merge = c, .bits = all_bits};
  }
  return best;
}

}  // namespace

ContextChoice choose_contexts(const uint8_t* before, const uint8_t* after, const uint8_t* symbols, size_t count) {
  constexpr size_t kPiece = 512;
  constexpr uint32_t kEvery = 4;
  const uint32_t every = count < 64 * kPiece ? 1 : kEvery;
  HistogramBuilder builder;
  Transitions transitions{};
  for (size_t begin = 0; begin < count; begin += every * kPiece) {
    const size_t end = std::min(count, begin + kPiece);
    builder.add(before + begin, symbols + begin, end - begin);
    for (size_t i = begin; i < end; ++i) transitions[before[i]][after[i]] += every;
  }
  Histogram histogram = builder.total();
  uint64_t seen = 0, unchanged = 0;
  for (auto& counts : histogram.count) {
    for (uint32_t& n : counts) n *= every;  // as many as there are, so that they weigh against the tables
    seen += std::accumulate(counts.begin(), counts.end(), uint64_t{0});
    unchanged += counts[0];
  }
  const Merge dense = best_merge(histogram, transitions, false), sparse = best_merge(histogram, transitions, true);
  constexpr uint64_t kShort = 8;        // fewer than one change in so many elements
  constexpr double kWorthSpeed = 1.05;  // times the bits
  if (kShort * (seen - unchanged) < seen && sparse.bits < kWorthSpeed * dense.bits)
    return {.sparse = true, .merge = sparse.merge};
  return {.sparse = false, .merge = dense.merge};
}

}  // namespace lathe::checkpoint
