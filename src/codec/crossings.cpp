#include "codec/crossings.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "codec/bit_ranks.h"
#include "codec/bytes.h"
#include "codec/context_choice.h"

namespace lathe::codec {
namespace {

constexpr uint64_t kFastAsks = 16, kSmallAsks = 128;  // elements, for one that crossed
constexpr uint32_t kMaxCode = 32;                     // of a limit of 2^31 steps
constexpr uint32_t kMaxCoarse = 4;
constexpr uint32_t kMaxRemainder = 31;
constexpr uint32_t kAlphabet = symbol_of(2 * kContexts - 1) + 1;

uint8_t limit_code(uint32_t distance) {
  return static_cast<uint8_t>(32 - __builtin_clz(2 * distance - 1));
}
uint64_t limit_of(uint32_t code) {
  return code == 0 ? 0 : uint64_t{1} << (code - 1);
}

// The distance to an edge as a power of the square root of 2, in steps of context 0.
uint32_t reach(Edge edge, uint32_t context) {
  const auto power = static_cast<uint32_t>(31 - __builtin_clz(edge.distance));
  const uint64_t squared = uint64_t{edge.distance} * edge.distance;
  return 2 * (power + context) + static_cast<uint32_t>(squared >> (2 * power + 1));
}

// The context of a candidate's crossing: its reach, counted down from the farthest, and on which side the edge is.
uint8_t crossing_context(Edge edge, uint32_t context, uint32_t farthest) {
  const auto nearer = std::clamp<int32_t>(static_cast<int32_t>(farthest) - static_cast<int32_t>(reach(edge, context)),
                                          0, kContexts / 2 - 1);
  return static_cast<uint8_t>(2 * nearer + (edge.up ? 1 : 0));
}
constexpr bool is_up(uint32_t crossing_context) {
  return (crossing_context & 1U) != 0;
}

// The contexts of crossings are coarser by 2^`coarse` powers of the square root of 2; the side stays.
constexpr uint8_t coarsened(uint32_t context, uint32_t coarse) {
  return static_cast<uint8_t>((context >> 1 >> coarse) << 1 | (context & 1U));
}

// Few crossings are not worth many tables. Leaves the histogram of the coarseness returned.
uint32_t best_coarseness(Histogram& histogram) {
  uint32_t best = 0;
  double best_bits = histogram_bits(histogram);
  Histogram coarser = histogram;
  for (uint32_t coarse = 1; coarse <= kMaxCoarse; ++coarse) {
    for (uint32_t c = 2; c < kContexts; ++c) {
      const uint32_t to = coarsened(c, 1);
      if (to == c) continue;
      for (uint32_t s = 0; s < kSymbols; ++s) coarser.count[to][s] += std::exchange(coarser.count[c][s], 0);
    }
    const double bits = histogram_bits(coarser);
    if (bits < best_bits) best = coarse, best_bits = bits, histogram = coarser;
  }
  return best;
}

// crossing_context() of every magnitude of a 16-bit type that is a candidate.
template <class Element>
void fill_table(ContextRange range, const NearEdges& near, uint32_t farthest, std::vector<uint8_t>& table) {
  constexpr size_t kMagnitudes = size_t{1} << 15;
  table.resize(kMagnitudes);
  const auto fill = [&](uint32_t context, size_t begin, size_t end) {
    for (size_t magnitude = begin; magnitude < std::min(end, kMagnitudes); ++magnitude) {
      const Edge edge = nearest_edge<Element>(static_cast<uint32_t>(magnitude), context, range);
      table[magnitude] = crossing_context(edge, context, farthest);
    }
  };
  for (uint32_t c = 0; c <= range.last; ++c) {
    const size_t low = c > 0 ? size_t{range.base + c} << Element::kMantissa : 0,
                 high = c < range.last ? size_t{range.base + c + 1} << Element::kMantissa : kMagnitudes;
    fill(c, low, std::min<size_t>(near.below[c], high));
    fill(c, std::max<size_t>(near.from[c], low), high);
  }
}

template <class Element>
NearEdges near_edges(ContextRange range, const std::array<uint8_t, kContexts>& codes) {
  NearEdges near;
  near.from.fill(~0U);
  for (uint64_t c = 0; c <= range.last; ++c) {
    const uint64_t limit = limit_of(codes[c]), edge = (range.base + c) << Element::kMantissa,
                   next = edge + (uint64_t{1} << Element::kMantissa);
    if (limit == 0) continue;
    if (c > 0) near.below[c] = static_cast<uint32_t>(std::min<uint64_t>(edge + limit, ~0U));
    if (c < range.last) near.from[c] = static_cast<uint32_t>(next - std::min(next, limit));
  }
  return near;
}

// A candidate's context before, given the one now: 0 if it is the same, and 1 if it came over the nearest edge.
uint32_t direction_coded(uint8_t away, bool up) {
  return zigzag(static_cast<uint8_t>(up ? -away : away));
}
uint32_t direction_decoded(uint32_t code, bool up) {
  const uint32_t away = unzigzag(static_cast<uint8_t>(code));
  return up ? -away : away;
}

// False if that leads to no context.
bool move_context(uint8_t& context, uint32_t away, ContextRange range) {
  context = static_cast<uint8_t>(context + away);
  return context <= range.last;
}

Error leads_nowhere() {
  return corruption("a crossing leads to no context");
}

}  // namespace

void CrossingCoder::clear() {
  crossed_.clear();
}

template <class Element>
void CrossingCoder::locate(ContextRange range) {
  for (Crossed& crossed : crossed_) {
    const auto bits = static_cast<typename Element::Bits>(crossed.bits);
    const uint32_t context = context_of<Element>(bits, range);
    const Edge edge = nearest_edge<Element>(Element::magnitude(bits), context, range);
    crossed.away = static_cast<uint8_t>(crossed.old - context);
    crossed.context = static_cast<uint8_t>(context);
    crossed.limit = limit_code(edge.distance);
    crossed.reach = static_cast<uint8_t>(reach(edge, context));
    crossed.up = edge.up;
  }
}

CrossingCoder::Limits CrossingCoder::choose_limits(const Histogram& about, int mantissa, StreamShape shape) const {
  const uint64_t asks = shape == StreamShape::kFast ? kFastAsks : kSmallAsks;
  std::array<std::array<uint32_t, kMaxCode + 1>, kContexts> crossed{};
  for (const Crossed& each : crossed_) ++crossed[each.context][each.limit];
  Limits limits;
  for (uint32_t c = 0; c < kContexts; ++c) {
    const auto population = std::accumulate(about.count[c].begin(), about.count[c].end(), uint64_t{0});
    for (uint32_t code = 1; code <= kMaxCode; ++code) {
      // About as many elements lie twice as near, on both sides: mantissas are spread evenly. Context 0 has more
      // exponents than one.
      const int halvings = std::max(0, mantissa - std::max(static_cast<int>(code) - 1, 1));
      if (crossed[c][code] > 0 && asks * crossed[c][code] >= population >> halvings)
        limits.codes[c] = static_cast<uint8_t>(code);
    }
  }
  for (const Crossed& each : crossed_) {
    if (limits.include(each)) limits.reach = std::max<uint32_t>(limits.reach, each.reach);
  }
  return limits;
}

template <class Element>
size_t CrossingCoder::find_candidates(const CodedElements& after, ContextRange range, const Limits& limits) {
  using Bits = typename Element::Bits;
  constexpr bool kTable = sizeof(Bits) == 2;
  const NearEdges near = near_edges<Element>(range, limits.codes);
  if constexpr (kTable) fill_table<Element>(range, near, limits.reach, table_);
  std::array<uint64_t, words_for(kPieceElements)> room;
  size_t found = 0;
  for (const CodedRange& piece : after.pieces) {
    const std::byte* values = after.part + piece.first * sizeof(Bits);
    const std::span bits = std::span(room).first(words_for(piece.size));
    near_bits(Element(), values, piece.size, range, near, bits.data());
    if (candidates_.size() < found + piece.size) {
      candidates_.resize(2 * found + kPieceElements);
      candidate_contexts_.resize(candidates_.size());
    }
    each_bit(bits, [&](size_t i) {
      const Bits value = load<Bits>(values, i);
      candidates_[found] = static_cast<uint32_t>(piece.coded + i);
      if constexpr (kTable) {
        candidate_contexts_[found] = table_[Element::magnitude(value)];
      } else {
        const uint32_t context = context_of<Element>(value, range);
        const Edge edge = nearest_edge<Element>(Element::magnitude(value), context, range);
        candidate_contexts_[found] = crossing_context(edge, context, limits.reach);
      }
      ++found;
    });
  }
  return found;
}

void CrossingCoder::encode_near(size_t count, const Limits& limits, StreamShape shape, std::vector<std::byte>& out) {
  pairs_.resize(count);
  for (size_t k = 0; k < count; ++k) pairs_[k] = pair_of(candidate_contexts_[k], 0);
  writer_.clear();
  size_t k = 0;
  for (const Crossed& crossed : crossed_) {
    if (!limits.include(crossed)) continue;
    while (candidates_[k] != crossed.element) ++k;
    const uint32_t number = direction_coded(crossed.away, crossed.up), symbol = symbol_of(number);
    pairs_[k] = pair_of(candidate_contexts_[k], symbol);
    if (const uint32_t bits = extra_bits(symbol); bits > 0) writer_.put(number & ((1U << bits) - 1), bits);
  }
  histogram_.clear();
  histogram_.add(pairs_);
  Histogram histogram = histogram_.total();
  const uint32_t coarse = best_coarseness(histogram);
  append(out, static_cast<uint8_t>(coarse));
  if (coarse > 0) {
    for (Pair& pair : pairs_) pair = pair_of(coarsened(context_of(pair), coarse), symbol_in(pair));
  }
  encoder_.encode(pairs_, histogram, writer_.finish(), shape, out);
}

void CrossingCoder::encode_far(const Limits& limits, std::vector<std::byte>& out) {
  uint32_t count = 0, end = 0;
  for (const Crossed& crossed : crossed_) {
    if (limits.include(crossed)) continue;
    ++count;
    end = crossed.element;
  }
  append_varint(out, count);
  if (count == 0) return;
  const auto remainder = static_cast<uint32_t>(std::bit_width(end / count));
  append(out, static_cast<uint8_t>(remainder));
  writer_.clear();
  uint32_t next = 0;
  for (const Crossed& crossed : crossed_) {
    if (limits.include(crossed)) continue;
    const uint32_t gap = crossed.element - next;
    writer_.put_gamma((gap >> remainder) + 1);
    writer_.put(gap & ((1U << remainder) - 1), remainder);
    writer_.put_gamma(zigzag(crossed.away));
    next = crossed.element + 1;
  }
  append_bytes(out, writer_.finish());
}

template <class Element>
void CrossingCoder::encode(const CodedElements& after, ContextRange range, const Histogram& about, StreamShape shape,
                           std::vector<std::byte>& out) {
  if (crossed_.empty()) return;
  locate<Element>(range);
  const Limits limits = choose_limits(about, Element::kMantissa, shape);
  uint32_t present = 0;
  for (uint32_t c = 0; c < kContexts; ++c) present |= static_cast<uint32_t>(limits.codes[c] > 0) << c;
  append_varint(out, present);
  if (present != 0) {
    for (const uint8_t code : limits.codes) {
      if (code > 0) append(out, code);
    }
    append(out, static_cast<uint8_t>(limits.reach));
    encode_near(find_candidates<Element>(after, range, limits), limits, shape, out);
  }
  encode_far(limits, out);
}

Status CrossingCoder::decode_near(size_t count, ContextRange range, std::span<const std::byte>& in,
                                  std::span<uint8_t> contexts) {
  const uint32_t coarse = LATHE_TRY(take<uint8_t>(in));
  if (coarse > kMaxCoarse) return corruption("the contexts of crossings are impossibly coarse");
  const std::span candidate_contexts = std::span(candidate_contexts_).first(count);
  for (uint8_t& context : candidate_contexts) context = coarsened(context, coarse);
  symbols_.resize(count);
  BitReader bits(LATHE_TRY(decoder_.decode(in, kAlphabet, candidate_contexts, symbols_)));
  bits_.resize(words_for(symbols_.size()));
  nonzero_bits(symbols_, bits_.data());
  bool inside = true;
  each_bit(bits_, [&](size_t k) {
    const uint32_t code = number_of(symbols_[k], bits.get(extra_bits(symbols_[k])));
    const uint32_t away = direction_decoded(code, is_up(candidate_contexts_[k]));
    inside &= move_context(contexts[candidates_[k]], away, range);
  });
  if (!inside) return leads_nowhere();
  return bits.exact() ? Status() : Status(corruption("the crossings do not end where they should"));
}

Status CrossingCoder::decode_far(ContextRange range, std::span<const std::byte>& in, std::span<uint8_t> contexts) {
  const uint64_t count = LATHE_TRY(take_varint(in));
  if (count == 0) return {};
  const uint32_t remainder = LATHE_TRY(take<uint8_t>(in));
  if (remainder > kMaxRemainder) return corruption("the list of crossings has an impossible scale");
  BitReader bits(std::exchange(in, {}));
  uint64_t next = 0;
  for (uint64_t k = 0; k < count; ++k) {
    const uint64_t quotient = bits.get_gamma();
    const uint64_t element = next + ((quotient - 1) << remainder | bits.get(remainder));
    const uint64_t away = bits.get_gamma();
    if (quotient == 0 || away == 0 || away > 255 || element >= contexts.size())
      return corruption("the list of crossings leads past the last element");
    if (!move_context(contexts[element], unzigzag(static_cast<uint8_t>(away)), range)) return leads_nowhere();
    next = element + 1;
  }
  return bits.exact() ? Status() : Status(corruption("the list of crossings does not end where it should"));
}

template <class Element>
Status CrossingCoder::decode(const CodedElements& after, ContextRange range, std::span<const std::byte> in,
                             std::span<uint8_t> contexts, uint32_t format) {
  if (in.empty()) return {};
  const uint64_t present = LATHE_TRY(take_varint(in));
  if (present >> kContexts != 0) return corruption("crossings into contexts that do not exist");
  if (present != 0) {
    Limits limits;
    for (uint32_t c = 0; c < kContexts; ++c) {
      if ((present >> c & 1U) == 0) continue;
      limits.codes[c] = LATHE_TRY(take<uint8_t>(in));
      if (limits.codes[c] == 0 || limits.codes[c] > kMaxCode) return corruption("a crossing lies farther than can be");
    }
    limits.reach = LATHE_TRY(take<uint8_t>(in));
    LATHE_TRY(decode_near(find_candidates<Element>(after, range, limits), range, in, contexts));
  }
  if (format > 1) LATHE_TRY(decode_far(range, in, contexts));
  return in.empty() ? Status() : Status(corruption("there are bytes after the crossings"));
}

#define LATHE_CROSSINGS(Element)                                                                                  \
  template void CrossingCoder::encode<Element>(const CodedElements&, ContextRange, const Histogram&, StreamShape, \
                                               std::vector<std::byte>&);                                          \
  template Status CrossingCoder::decode<Element>(const CodedElements&, ContextRange, std::span<const std::byte>,  \
                                                 std::span<uint8_t>, uint32_t);
LATHE_CROSSINGS(BFloat16)
LATHE_CROSSINGS(Float16)
LATHE_CROSSINGS(Float32)
#undef LATHE_CROSSINGS

}  // namespace lathe::codec
