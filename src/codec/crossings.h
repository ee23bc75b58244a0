// Crossings: which elements changed context, so that deltas can also be applied backward: steps are coded under the
// contexts *before*.
//
// Few elements cross, and nearly all that do are close to the edge that they crossed. So each element close to an edge,
// a *candidate*, has a symbol that says whether it crossed and from where; the other crossings are listed. The encoder
// chooses, per context, the distance beyond which too few candidates would have crossed to be worth the time.
// Threads: one at a time; it reuses its buffers.
// Format page: docs/formats/delta.md, "Crossings".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "codec/element_loops.h"
#include "codec/entropy.h"

namespace lathe::codec {

inline constexpr size_t kPieceElements = 8192;  // that stay in a core's fastest caches from one loop to the next

// Elements [first, first + size) of a part, which are the coded elements from `coded` on.
struct CodedRange {
  size_t first = 0, coded = 0, size = 0;
};

// The coded elements of a part, in pieces of kPieceElements or fewer.
struct CodedElements {
  const std::byte* part = nullptr;
  std::span<const CodedRange> pieces;
};

class CrossingCoder {
 public:
  void clear();
  // Notes that an element, whose bits are now `now`, came from context `old`. Elements ascend.
  void note(size_t element, uint32_t old, uint32_t now) {
    crossed_.push_back({.element = static_cast<uint32_t>(element), .bits = now, .old = static_cast<uint8_t>(old)});
  }

  // Appends what was noted; nothing if nothing was. `about` says how many elements each context has, about.
  template <class Element>
  void encode(const CodedElements& after, ContextRange range, const Histogram& about, StreamShape shape,
              std::vector<std::byte>& out);

  // Turns `contexts`, of the elements after, into those of the elements before. `in` is all that encode() appended;
  // kCorruption if it contradicts itself or the elements. `format` is the file's version.
  template <class Element>
  Status decode(const CodedElements& after, ContextRange range, std::span<const std::byte> in,
                std::span<uint8_t> contexts, uint32_t format);

 private:
  struct Crossed {
    uint32_t element, bits;
    uint8_t old;  // context before
    // What encode() finds out:
    uint8_t away = 0, context = 0;  // context before less context now; now
    uint8_t limit = 0, reach = 0;  // how far the nearest edge is: the code of the least limit that includes it; reach()
    bool up = false;               // that edge is the one above
  };
  // Which elements are candidates: per context, the code of the farthest that an edge may be, or 0 for none. And how
  // far it was for the farthest that crossed.
  struct Limits {
    std::array<uint8_t, kContexts> codes{};
    uint32_t reach = 0;
    bool include(const Crossed& crossed) const { return crossed.limit <= codes[crossed.context]; }
  };

  template <class Element>
  void locate(ContextRange range);  // what the others need of crossed_
  Limits choose_limits(const Histogram& about, int mantissa, StreamShape shape) const;
  // Leaves candidates_ and candidate_contexts_; returns how many there are.
  template <class Element>
  size_t find_candidates(const CodedElements& after, ContextRange range, const Limits& limits);
  void encode_near(size_t count, const Limits& limits, StreamShape shape, std::vector<std::byte>& out);
  void encode_far(const Limits& limits, std::vector<std::byte>& out);
  Status decode_near(size_t count, ContextRange range, std::span<const std::byte>& in, std::span<uint8_t> contexts);
  static Status decode_far(ContextRange range, std::span<const std::byte>& in, std::span<uint8_t> contexts);

  std::vector<Crossed> crossed_;
  std::vector<uint32_t> candidates_;         // coded elements
  std::vector<uint8_t> candidate_contexts_;  // of their crossings
  std::vector<uint8_t> table_;               // per magnitude of a 16-bit type: that context
  std::vector<uint64_t> bits_;
  std::vector<uint8_t> symbols_;
  std::vector<Pair> pairs_;
  HistogramBuilder histogram_;
  SymbolEncoder encoder_;
  SymbolDecoder decoder_;
  BitWriter writer_;
};

}  // namespace lathe::codec
