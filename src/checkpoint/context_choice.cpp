#include "checkpoint/context_choice.h"

#include <algorithm>
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

// What merging one context after the other into the next costs, dense and sparse.
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
      all_ += count;
      crossed_ += left;
      symbol_bits_ += context_bits(histogram_.count[c]);
    }
    for (uint32_t c = 0; c < kContexts; ++c) transition_bits_ += column_bits(c);
    low_bits_ = context_bits(low_);
  }

  // Contexts below c are one with c from now on.
  void merge_into(uint32_t c) {
    symbol_bits_ -= low_bits_ + context_bits(histogram_.count[c]);
    for (uint32_t s = 0; s < kSymbols; ++s) low_[s] += histogram_.count[c][s];
    low_bits_ = context_bits(low_);
    symbol_bits_ += low_bits_;

    crossed_ -= transitions_[c - 1][c] + transitions_[c][c - 1];
    for (uint32_t k = 0; k < kContexts; ++k) {
      const uint32_t more = std::exchange(transitions_[c - 1][k], 0), n = transitions_[c][k];
      transitions_[c][k] += more;
      if (more > 0 && n > 0) transition_bits_ += n_log_n(n) + n_log_n(more) - n_log_n(uint64_t{n} + more);
    }
    transition_bits_ -= column_bits(c - 1) + column_bits(c);
    for (uint32_t k = 0; k < kContexts; ++k) transitions_[k][c] += std::exchange(transitions_[k][c - 1], 0);
    transition_bits_ += column_bits(c);
  }

  // Steps and tables; and which elements changed their context: given the new one and how far its edge is, or, in
  // lists, their places.
  double dense_bits() const {
    constexpr double kDistanceHelps = 0.55;
    return symbol_bits_ + kDistanceHelps * transition_bits_;
  }
  double sparse_bits() const { return symbol_bits_ + n_log_n(all_) - n_log_n(crossed_) - n_log_n(all_ - crossed_); }

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
  Counts low_;
  uint64_t all_ = 0, crossed_ = 0;
  double symbol_bits_ = 0, low_bits_ = 0, transition_bits_ = 0;
};

}  // namespace

double histogram_bits(const Histogram& histogram) {
  double bits = 0;
  for (const Counts& counts : histogram.count) bits += context_bits(counts);
  return bits;
}

ContextChoice choose_contexts(const Steps& steps, bool short_lists) {
  MergeWalk walk(steps);
  struct Best {
    uint32_t merge = 0;
    double bits = 0;
    void see(uint32_t c, double now) {
      if (now <= bits) *this = {.merge = c, .bits = now};
    }
  };
  Best dense{.bits = walk.dense_bits()}, sparse{.bits = walk.sparse_bits()};
  for (uint32_t c = 1; c < kContexts; ++c) {
    walk.merge_into(c);
    dense.see(c, walk.dense_bits());
    sparse.see(c, walk.sparse_bits());
  }
  constexpr double kWorthSpeed = 1.05;  // times the bits
  if (short_lists && sparse.bits < kWorthSpeed * dense.bits) return {.sparse = true, .merge = sparse.merge};
  return {.sparse = false, .merge = dense.merge};
}

}  // namespace lathe::checkpoint
