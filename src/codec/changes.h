// Few changes among many elements: which elements changed and by what, close to the entropy given their contexts, for
// the price of the changes and not of the elements.
//
// Per context there is a list of its changed elements, each by the number of unchanged elements of the same context
// since the last. Contexts are those before; a reader that knows the new values first learns which others there were
// (crossings.h).
// Threads: one at a time.
// Format page: docs/formats/delta.md, "Changes".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "codec/entropy.h"

namespace lathe::codec {

struct Change {
  uint32_t element = 0;
  uint32_t number = 0;  // the zigzagged step; not 0
  uint32_t context = 0;
};

// Both directions, with room that is worth keeping for the next tile.
class ChangeCoder {
 public:
  // Appends `changes`, which ascend. before[i] < contexts <= kContexts is the context of element i.
  void encode(std::span<const Change> changes, std::span<const uint8_t> before, uint32_t contexts,
              std::vector<std::byte>& out);

  // Reads what encode() wrote from the front of `in`, which moves on; `before` as there, but that it is used up.
  // Numbers have symbols below `alphabet`. The changes come list by list, ascending in each.
  Status decode(std::span<const std::byte>& in, std::span<uint8_t> before, uint32_t contexts, uint32_t alphabet,
                std::vector<Change>& changes, uint32_t format);

 private:
  // The elements of list c are in [begins[c], begins[c + 1]).
  using Begins = std::array<uint32_t, kContexts + 2>;

  void find_gaps(const Begins& begins, std::span<const uint8_t> before, uint32_t contexts);
  void write(std::vector<std::byte>& out);  // pairs_ and extra_
  // Format 1: elements of the list after those of the contexts. Takes them out of `before`, for the others.
  Status place_crossed(const Begins& begins, std::span<uint8_t> before, uint32_t contexts);
  Status place(const Begins& begins, std::span<const uint8_t> before, uint32_t contexts);

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

}  // namespace lathe::codec
