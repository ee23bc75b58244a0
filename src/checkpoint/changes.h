// Few changes among many elements: which elements changed and by what, close to the entropy given their contexts, for
// the price of the changes and not of the elements.
//
// Per context there is a list of its changed elements, each by the number of unchanged elements of the same context
// since the last. An element whose context itself changes is in one more list, by its place among all elements, and no
// other list counts it: so a reader that knows the old values and one that knows the new ones see the same contexts
// wherever they look.
// Threads: pure functions.
// Format page: docs/formats/delta.md, "Changes".
#pragma once

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
};

// Appends `changes`, which ascend. before[i], after[i] < contexts < kContexts are the contexts of element i.
void encode_changes(std::span<const Change> changes, std::span<const uint8_t> before, std::span<const uint8_t> after,
                    uint32_t contexts, SymbolEncoder& encoder, std::vector<std::byte>& out);

// Reads what encode_changes wrote from the front of `in`, which moves on. `known` are the contexts on the side that the
// reader has, and are used up. Numbers have symbols below `alphabet`. The changes come list by list, ascending in each.
Status decode_changes(std::span<const std::byte>& in, std::span<uint8_t> known, uint32_t contexts, uint32_t alphabet,
                      std::vector<Change>& changes);

}  // namespace lathe::checkpoint
