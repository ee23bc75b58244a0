// TileCodec: the difference between two contents of a tile as bytes, and either content from the other and those.
//
// Every element is coded as its step: the signed number of representable values from old to new (ulp.h), given the
// exponent of the old value, which says how large a step is. Forward that context is known; backward it is not, so
// elements that crossed into another exponent are told separately, which costs about one per cent more.
// Where few elements changed, they are listed (sparse, changes.h); else every element has a symbol (dense, entropy.h).
// Blocks of 512 bytes without a change may be left out of both. What does not compress is stored as before xor after.
// Threads: one at a time; keep one codec per thread, it reuses its buffers.
// Memory: about eight bytes per element of a tile, 8 MiB for bf16.
// Format page: docs/formats/delta.md, "Payloads".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "checkpoint/changes.h"
#include "checkpoint/context_choice.h"
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

  // Leaves changed_bits_, changed_, and in blocks_ those that have any; false if there are none.
  template <class Element>
  bool find_changes(const std::byte* before, const std::byte* after, size_t count);
  // Decides which blocks are coded and writes that; leaves runs_ and coded_.
  void choose_blocks(size_t count, size_t block_elements, std::vector<std::byte>& payload);
  StreamShape shape() const;
  void list_runs(size_t count, size_t block_elements);  // runs_, pieces_ and coded_ from blocks_
  template <class Element>
  Steps survey(const std::byte* before, const std::byte* after, ContextRange range);
  template <class Element>
  void form_contexts(const std::byte* values, ContextRange range);  // contexts_

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
  bool apply_steps(const std::byte* known, std::span<const std::byte> extra, Direction direction, std::byte* out);

  // Which elements lay in another context before: told only of candidates, elements near an edge of their context.
  template <class Element>
  void note_crossings(const std::byte* values, const Run& piece, ContextRange range, std::span<const uint64_t> crossed,
                      Crossings& crossings);
  template <class Element>
  void find_candidates(const std::byte* after, ContextRange range, const Crossings& crossings);
  template <class Element>
  std::vector<std::byte> encode_crossings(const std::byte* after, ContextRange range,
                                          Crossings crossings);  // empty if there are none
  // Turns contexts_ from those of the new values into those of the old ones.
  template <class Element>
  Status decode_crossings(const std::byte* after, ContextRange range, std::span<const std::byte> in);

  std::vector<uint64_t> changed_bits_;  // per element of the part
  std::vector<uint16_t> changes_in_;    // per block of the part
  std::vector<uint8_t> blocks_;         // per block of the part: 1 if it is coded
  std::vector<Run> runs_, pieces_;      // neighbouring coded blocks; and cut into pieces of a cache's size
  size_t coded_ = 0;                    // elements in them
  size_t changed_ = 0;                  // elements that have a step
  // Per coded element:
  std::vector<Pair> pairs_;                  // old context and step
  std::vector<uint8_t> contexts_, symbols_;  // contexts of the values before, or of those known
  std::vector<uint64_t> bits_;               // of the candidates: which crossed
  std::vector<Change> changes_;
  std::vector<uint32_t> crossed_, away_;  // coded elements that left their context; by how many it now lies lower
  std::vector<uint32_t> steps_, ranks_;  // from one of those to the next among the candidates; candidates before a word
  std::vector<uint8_t> table_;           // per magnitude of a 16-bit type: the context of its crossing, if a candidate
  std::vector<uint64_t> candidate_bits_;  // per coded element
  std::vector<uint8_t> candidate_room_, candidate_symbols_;
  std::span<uint8_t> candidate_contexts_;
  std::vector<Pair> candidate_pairs_;
  HistogramBuilder histogram_;
  SymbolEncoder encoder_;
  SymbolDecoder decoder_;
  ChangeCoder change_coder_;
  BitWriter extra_;
};

}  // namespace lathe::checkpoint
