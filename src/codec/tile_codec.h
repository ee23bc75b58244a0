// TileCodec: codes the difference between two contents of a tile, and restores either content from the other.
//
// Every element is coded as its step: the signed number of representable values from old to new (ulp.h), given the
// exponent of the old value, which says how large a step is. Forward that context is known; backward it is not, so
// elements that crossed into another exponent are coded separately (crossings.h), which costs one or two per cent more.
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
#include "codec/changes.h"
#include "codec/context_choice.h"
#include "codec/crossings.h"
#include "codec/element_loops.h"
#include "codec/element_type.h"
#include "codec/entropy.h"

namespace lathe::codec {

inline constexpr uint32_t kFormat = 2, kOldestFormat = 1;  // what is written; the oldest that is read

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
  // is then undefined. Never reads or writes outside the spans, whatever the payload holds. `format` is the version of
  // the file that holds the payload.
  Status decode(std::span<const TilePart> parts, Direction direction, std::span<const std::byte> known,
                std::span<const std::byte> payload, std::span<std::byte> out, uint32_t format = kFormat);

 private:
  // The elements of one part; Element is one of ulp.h. encode_part appends at most one byte more than `size`.
  template <class Element>
  TileMode encode_part(const std::byte* before, const std::byte* after, size_t size, std::vector<std::byte>& payload);
  template <class Element>
  Status decode_part(TileMode mode, Direction direction, std::span<const std::byte> known,
                     std::span<const std::byte>& payload, std::byte* out, uint32_t format);

  // Leaves changed_bits_, changed_, and in blocks_ those that have any; false if there are none.
  template <class Element>
  bool find_changes(const std::byte* before, const std::byte* after, size_t count);
  // Decides which blocks are coded and writes that; sets coded_ranges_ and coded_.
  void choose_blocks(size_t count, size_t block_elements, std::vector<std::byte>& payload);
  void list_coded_ranges(size_t count, size_t block_elements);  // coded_ranges_, pieces_, coded_ from blocks_
  template <class Element>
  Steps survey(const std::byte* before, const std::byte* after, ContextRange range);
  template <class Element>
  void form_contexts(const std::byte* values, ContextRange range);  // contexts_

  template <class Element>
  void encode_sparse(const std::byte* before, const std::byte* after, ContextRange range, const Histogram& about,
                     std::vector<std::byte>& payload);
  template <class Element>
  Status decode_sparse(Direction direction, std::span<const std::byte> known, ContextRange range,
                       std::span<const std::byte>& payload, std::byte* out, uint32_t format);
  template <class Element>
  void encode_dense(const std::byte* before, const std::byte* after, ContextRange range, const Histogram& about,
                    std::vector<std::byte>& payload);
  template <class Element>
  Status decode_dense(Direction direction, std::span<const std::byte> known, std::span<const std::byte>& payload,
                      std::byte* out);
  template <class Element>
  bool apply_steps(const std::byte* known, std::span<const std::byte> extra, Direction direction, std::byte* out);

  // What crossings_ noted, and how long that is.
  template <class Element>
  void write_crossings(const std::byte* after, ContextRange range, const Histogram& about, StreamShape shape,
                       std::vector<std::byte>& payload);

  std::vector<uint64_t> changed_bits_;             // per element of the part
  std::vector<uint16_t> changes_in_;               // per block of the part
  std::vector<uint8_t> blocks_;                    // per block of the part: 1 if it is coded
  std::vector<CodedRange> coded_ranges_, pieces_;  // neighbouring coded blocks; and cut into pieces of a cache's size
  size_t coded_ = 0;                               // elements in them
  size_t changed_ = 0;                             // elements that have a step
  // Per coded element:
  std::vector<Pair> pairs_;                  // old context and step
  std::vector<uint8_t> contexts_, symbols_;  // contexts of the values before, or of those known
  std::vector<Change> changes_;
  std::vector<std::byte> told_;  // of crossings
  CrossingCoder crossings_;
  HistogramBuilder histogram_;
  SymbolEncoder encoder_;
  SymbolDecoder decoder_;
  ChangeCoder change_coder_;
  BitWriter extra_;
};

}  // namespace lathe::codec
