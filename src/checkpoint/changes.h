// Few changes among many elements: which elements changed and by what, close to the entropy given their contexts, for
// the price of the changes and not of the elements.
//
// Per context there is a list of its changed elements, each by the number of unchanged elements of the same context
// since the last. An element whose context itself changes is in one more list, by its place among all elements, and no
// other list counts it: so a reader that knows the old values and one that knows the new ones see the same contexts
// wherever they look.
// Threads: one at a time.
// Format page: docs/formats/delta.md, "Changes".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "checkpoint/entropy.h"

namespace lathe::checkpoint {

struct Change {
  uint32_t element = 0;
  uint32_t number = 0;  // the zigzagged step; not 0
  uint32_t list = 0;    // the context before and after, or kCrossed if they differ
  static constexpr uint32_t kCrossed = kContexts;
};

// Both directions, with room that is worth keeping for the next tile.
class ChangeCoder {
 public:
  // Appends `changes`, which ascend. before[i] < contexts <= kContexts is the context of element i.
  void encode(std::span<const Change> changes, std::span<const uint8_t> before, uint32_t contexts,
              std::vector<std::byte>& out);

  // Reads what encode() wrote from the front of `in`, which moves on. `known` are the contexts on the side that the
  // reader has, and are used up. Numbers have symbols below `alphabet`. The changes come list by list, ascending in
  // each.
  Status decode(std::span<const std::byte>& in, std::span<uint8_t> known, uint32_t contexts, uint32_t alphabet,
                std::vector<Change>& changes);

 private:
  // The elements of list c stand in [begins[c], begins[c + 1]).
  using Begins = std::array<uint32_t, kContexts + 2>;

  void find_gaps(const Begins& begins, std::span<const uint8_t> before, uint32_t contexts);
  void write(std::vector<std::byte>& out);  // pairs_ and extra_
  Status place(const Begins& begins, std::span<uint8_t> known, uint32_t contexts);

  SymbolEncoder encoder_;
  SymbolDecoder decoder_;
  std::vector<uint32_t> elements_, gaps_, numbers_;  // list by list
  std::vector<uint64_t> unchanged_, kind_;           // bits per element
  std::vector<uint32_t> ranks_;                      // per word of them
  std::vector<Pair> pairs_;
  std::vector<uint8_t> contexts_, number_contexts_, symbols_;
  HistogramBuilder histogram_;
  BitWriter extra_;
};

}  // namespace lathe::checkpoint
