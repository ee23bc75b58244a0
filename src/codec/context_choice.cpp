#include "codec/context_choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace lathe::codec {
namespace {

// What merging one context after the other into the next costs.
class MergeWalk {
 public:
  explicit MergeWalk(const Steps& steps)
      : histogram_(steps.histogram), transitions_(steps.transitions), low_(steps.histogram.count[0]) {
    for (uint32_t c = 0; c < kContexts; ++c) {
      const uint64_t count = std::accumulate(histogram_.count[c].begin(), histogram_.count[c].end(), uint64_t{0});
      uint64_t left = 0;
      transitions_[c][c] = 0;
      for (const uint32_t n : transitions_[c]) left += n;
      transitions_[c][c] = static_cast<uint32_t>(count - std::min(count, left));
      symbol_bits_ += table_bits(histogram_.count[c]);
    }
    for (uint32_t c = 0; c < kContexts; ++c) transition_bits_ += column_bits(c);
    low_bits_ = table_bits(low_);
  }

  // Contexts below c are one with c from now on.
  void merge_into(uint32_t c) {
    symbol_bits_ -= low_bits_ + table_bits(histogram_.count[c]);
    for (uint32_t s = 0; s < kSymbols; ++s) low_[s] += histogram_.count[c][s];
    low_bits_ = table_bits(low_);
    symbol_bits_ += low_bits_;

    for (uint32_t k = 0; k < kContexts; ++k) {
      const uint32_t more = std::exchange(transitions_[c - 1][k], 0), n = transitions_[c][k];
      transitions_[c][k] += more;
      if (more > 0 && n > 0) transition_bits_ += n_log_n(n) + n_log_n(more) - n_log_n(uint64_t{n} + more);
    }
    transition_bits_ -= column_bits(c - 1) + column_bits(c);
    for (uint32_t k = 0; k < kContexts; ++k) transitions_[k][c] += std::exchange(transitions_[k][c - 1], 0);
    transition_bits_ += column_bits(c);
  }

  // Steps and tables; and which elements changed their context, given the new one and how far its edge is.
  double bits() const {
    constexpr double kDistanceHelps = 0.55;
    return symbol_bits_ + kDistanceHelps * transition_bits_;
  }

 private:
  // Bits of the old contexts given that the new one is `to`.
  double column_bits(uint32_t to) const {
    uint64_t total = 0;
    double bits = 0;
    for (uint32_t from = 0; from < kContexts; ++from) {
      total += transitions_[from][to];
      bits -= n_log_n(transitions_[from][to]);
    }
    return bits + n_log_n(total);
  }

  const Histogram& histogram_;
  Transitions transitions_;
  SymbolCounts low_;
  double symbol_bits_ = 0, low_bits_ = 0, transition_bits_ = 0;
};

}  // namespace

double histogram_bits(const Histogram& histogram) {
  double bits = 0;
  for (const SymbolCounts& counts : histogram.count) bits += table_bits(counts);
  return bits;
}

uint32_t contexts_to_merge(const Steps& steps) {
  MergeWalk walk(steps);
  uint32_t best = 0;
  double least = walk.bits();
  for (uint32_t c = 1; c < kContexts; ++c) {
    walk.merge_into(c);
    if (walk.bits() <= least) best = c, least = walk.bits();
  }
  return best;
}

Histogram merged(const Histogram& histogram, uint32_t merge) {
  Histogram result;
  for (uint32_t c = 0; c < kContexts; ++c) {
    for (uint32_t s = 0; s < kSymbols; ++s) result.count[c - std::min(c, merge)][s] += histogram.count[c][s];
  }
  return result;
}

}  // namespace lathe::codec
