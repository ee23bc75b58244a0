// TileCodec: the difference between two contents of a tile as bytes, and either content from the other and those.
//
// Every element is coded as its step: the signed number of representable values from old to new (ulp.h), given the
// exponent of the old value, which says how large a step is. Forward that context is known; backward it is not, so
// elements that crossed into another exponent are told separately, which costs about one per cent more.
// Where few elements changed, they are listed (sparse, changes.h); else every element has a symbol (dense, entropy.h).
// Blocks of 512 bytes without a change may be left out of both. What does not compress is stored as before xor after.
// Threads: one at a time; keep one codec per thread, it reuses its buffers.
// Memory: about six bytes per element of a tile, 6 MiB for bf16.
// Format page: docs/formats/delta.md, "Payloads".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "checkpoint/changes.h"
#include "checkpoint/element_loops.h"
#include "checkpoint/entropy.h"
#include "checkpoint/tile.h"

namespace lathe::checkpoint {

// How far from the nearest edge of its context an element may have crossed it: steps, per context, a power of two or 0
// for none; and the farthest in common measure (reach() in tile_codec.cpp).
struct Crossings {
  std::array<uint32_t, kContexts> limits{};
  uint32_t reach = 0;
};

enum class Direction { kForward, kBackward };

// How a part of a tile is coded; of a whole tile, for reports, how its largest part is. The numbers are the format's.
enum class TileMode : uint8_t { kUnchanged = 0, kSparse = 1, kDense = 2, kRaw = 3 };

class TileCodec {
 public:
  // Appends the payload. `before` and `after` have the same size, which `parts` cover. Never more than one byte
  // per part beyond the tile's size.
  TileMode encode(std::span<const TilePart> parts, std::span<const std::byte> before, std::span<const std::byte> after,
                  std::vector<std::byte>& payload);

  // Fills `out`, of the size of `known`, with the other side. kCorruption for a payload that contradicts itself; `out`
  // is then undefined. Never reads or writes outside the spans, whatever the payload holds.
  Status decode(std::span<const TilePart> parts, Direction direction, std::span<const std::byte> known,
                std::span<const std::byte> payload, std::span<std::byte> out);

 private:
  // Elements [first, first + size) of the part, which are the coded elements from `coded` on.
  struct Run {
    size_t first = 0, coded = 0, size = 0;
  };

  // The elements of one part; Element is one of ulp.h. encode_part appends at most one byte more than `size`.
  template <class Element>
  TileMode encode_part(const std::byte* before, const std::byte* after, size_t size, std::vector<std::byte>& payload);
  template <class Element>
  Status decode_part(TileMode mode, Direction direction, std::span<const std::byte> known,
                     std::span<const std::byte>& payload, std::byte* out);

  bool find_changed_blocks(const std::byte* before, const std::byte* after, size_t size);  // false if there are none
  // Decides which blocks are coded and writes that; leaves runs_, coded_, symbols_ and changed_.
  template <class Element>
  void choose_blocks(const std::byte* before, const std::byte* after, size_t count, std::vector<std::byte>& payload);
  void list_runs(size_t count, size_t block_elements);  // runs_ and coded_ from blocks_
  template <class Element>
  void form_symbols(const std::byte* before, const std::byte* after);
  template <class Element>
  void form_contexts(const std::byte* values, ContextRange range, std::vector<uint8_t>& contexts) const;
  template <class Element>
  static uint32_t step_number(const std::byte* before, const std::byte* after, size_t i);  // zigzagged

  template <class Element>
  void encode_sparse(const std::byte* before, const std::byte* after, ContextRange range,
                     std::vector<std::byte>& payload);
  template <class Element>
  Status decode_sparse(Direction direction, std::span<const std::byte> known, ContextRange range,
                       std::span<const std::byte>& payload, std::byte* out);
  template <class Element>
  void encode_dense(const std::byte* before, const std::byte* after, ContextRange range,
                    std::vector<std::byte>& payload);
  template <class Element>
  Status decode_dense(Direction direction, std::span<const std::byte> known, ContextRange range,
                      std::span<const std::byte>& payload, std::byte* out);
  template <class Element>
  bool apply_steps(const std::byte* known, std::span<const std::byte> extra, Direction direction, std::byte* out) const;

  // Which elements lay in another context before: told only of candidates, elements near an edge of their context.
  template <class Element>
  Crossings find_crossings(const std::byte* after, ContextRange range) const;
  template <class Element>
  void find_candidates(const std::byte* after, std::span<const uint8_t> contexts, ContextRange range,
                       const Crossings& crossings);
  template <class Element>
  std::vector<std::byte> encode_crossings(const std::byte* after, ContextRange range);  // empty if there are none
  // Turns contexts_ from those of the new values into those of the old ones.
  template <class Element>
  Status decode_crossings(const std::byte* after, ContextRange range, std::span<const std::byte> in);

  std::vector<uint8_t> blocks_;              // per block of the part: 1 if it is coded
  std::vector<Run> runs_;                    // neighbouring coded blocks
  size_t coded_ = 0;                         // elements in them
  size_t changed_ = 0;                       // of these, how many have a step
  std::vector<uint8_t> symbols_, contexts_;  // per coded element; contexts of the values before, or of those known
  std::vector<uint8_t> new_contexts_;        // of the values after
  std::vector<uint64_t> unchanged_;          // a bit per coded element
  std::vector<Change> changes_;
  std::vector<uint8_t> table_;  // per magnitude of a 16-bit type: is it a candidate, and how far
  size_t candidate_count_ = 0;
  std::vector<uint32_t> candidates_;  // indices of coded elements
  std::vector<uint8_t> candidate_contexts_, candidate_symbols_;
  HistogramBuilder histogram_;
  SymbolEncoder encoder_;
  BitWriter extra_;
};

}  // namespace lathe::checkpoint
