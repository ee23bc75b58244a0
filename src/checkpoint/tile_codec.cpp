#include "checkpoint/tile_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "checkpoint/bit_ranks.h"
#include "checkpoint/bytes.h"
#include "checkpoint/context_choice.h"
#include "checkpoint/element_loops.h"

namespace lathe::checkpoint {
namespace {

constexpr size_t kWord = 64;         // elements of a word of bits; runs begin at words
constexpr size_t kPiece = 8192;      // elements that stay in a core's fastest caches from one loop to the next
constexpr size_t kChunk = 512;       // elements of a sample, or whose steps are applied together
constexpr size_t kCodedBlock = 512;  // bytes: what is left out or coded

template <class Element>
constexpr size_t kBlockElements = kCodedBlock / sizeof(typename Element::Bits);

// Symbols that the steps of an element type can have.
template <class Element>
constexpr uint32_t kAlphabet = symbol_of(static_cast<typename Element::Bits>(-1)) + 1;

constexpr size_t kShort = 32;  // lists may be shorter than one change in so many elements

constexpr uint32_t kMaxCoarse = 4;
constexpr uint32_t kCrossingAlphabet = symbol_of(2 * kContexts - 1) + 1;

static_assert(kCodedBlock / sizeof(uint32_t) % kWord == 0);

// Calls work(Element()) for the element type.
template <class Work>
auto with_element(ElementType type, Work&& work) {
  switch (type) {
    case ElementType::kWord16:
      return work(Word16());
    case ElementType::kWord32:
      return work(Word32());
    case ElementType::kBFloat16:
      return work(BFloat16());
    case ElementType::kFloat16:
      return work(Float16());
    case ElementType::kFloat32:
      return work(Float32());
    case ElementType::kBytes:
      break;
  }
  return work(Byte());
}

// Lengths of the runs of blocks that are left out, coded, left out ...; 0, unless it comes first, for all that remain.
void append_runs(std::span<const uint8_t> blocks, std::vector<std::byte>& out) {
  uint8_t kind = 0;
  size_t begin = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i] == kind) continue;
    append_varint(out, i - begin);
    begin = i;
    kind ^= 1U;
  }
  append_varint(out, begin > 0 || kind == 1 ? 0 : blocks.size());
}

Status take_runs(std::span<const std::byte>& in, std::span<uint8_t> blocks) {
  uint8_t kind = 0;
  for (auto at = blocks.begin(); at != blocks.end(); kind ^= 1U) {
    const uint64_t run = LATHE_TRY(take_varint(in));
    const auto left = static_cast<uint64_t>(blocks.end() - at),
               size = run == 0 && (at != blocks.begin() || kind == 1) ? left : run;
    if (size > left) return corruption("the runs of changed blocks do not fit");
    at = std::fill_n(at, size, kind);
  }
  return {};
}

void append_raw(const std::byte* before, const std::byte* after, size_t size, std::vector<std::byte>& out) {
  append(out, TileMode::kRaw);
  const size_t begin = out.size();
  out.resize(begin + size);
  for (size_t i = 0; i < size; ++i) out[begin + i] = before[i] ^ after[i];
}

// Crossing limits as coded: 0 for none, else the number of bits of limit - 1, plus 1.
uint8_t limit_code(uint32_t limit) {
  return static_cast<uint8_t>(limit == 0 ? 0 : std::bit_width(limit - 1) + 1);
}
uint32_t code_limit(uint8_t code) {
  return code == 0 ? 0 : code > 32 ? ~0U : uint32_t{1} << (code - 1);
}

}  // namespace

void TileCodec::list_runs(size_t count, size_t block_elements) {
  runs_.clear();
  size_t coded = 0;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if (blocks_[b] == 0) continue;
    const size_t first = b * block_elements, size = std::min(block_elements, count - first);
    if (runs_.empty() || runs_.back().first + runs_.back().size != first)
      runs_.push_back({.first = first, .coded = coded});
    runs_.back().size += size;
    coded += size;
  }
  coded_ = coded;
  pieces_.clear();
  for (const Run& run : runs_) {
    for (size_t done = 0; done < run.size; done += kPiece)
      pieces_.push_back(
          {.first = run.first + done, .coded = run.coded + done, .size = std::min(kPiece, run.size - done)});
  }
}

template <class Element>
bool TileCodec::find_changes(const std::byte* before, const std::byte* after, size_t count) {
  changed_bits_.resize(words_for(count));
  changed_bits(Element(), before, after, count, changed_bits_.data());
  constexpr size_t kStretch = kBlockElements<Element> / kWord;
  std::vector<uint16_t>& counts = changes_in_;
  blocks_.resize((changed_bits_.size() + kStretch - 1) / kStretch);
  counts.resize(blocks_.size());
  count_stretches(changed_bits_, kStretch, counts.data());
  changed_ = 0;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    blocks_[b] = counts[b] > 0 ? 1 : 0;
    changed_ += counts[b];
  }
  return changed_ > 0;
}

// Where much changed, a few bytes more are nothing.
StreamShape TileCodec::shape() const {
  constexpr size_t kMuch = 16;  // more than one change in so many elements
  return kMuch * changed_ > coded_ ? StreamShape::kFast : StreamShape::kSmall;
}

void TileCodec::choose_blocks(size_t count, size_t block_elements, std::vector<std::byte>& payload) {
  list_runs(count, block_elements);
  if (coded_ < count) {
    // Bits that tell which elements changed, if they are scattered.
    const auto place_bits = [this](size_t among) -> double {
      const auto n = static_cast<double>(among), k = static_cast<double>(changed_);
      return k == 0 || k == n ? 0 : k * std::log2(n / k) + (n - k) * std::log2(n / (n - k));
    };
    std::vector<std::byte> lengths;
    append_runs(blocks_, lengths);
    constexpr double kWorthSkipping = 512;  // a few bits more are fine: what is left out costs no time
    if (place_bits(coded_) + 8 * static_cast<double>(lengths.size()) > place_bits(count) + kWorthSkipping) {
      std::fill(blocks_.begin(), blocks_.end(), uint8_t{1});
      list_runs(count, block_elements);
    }
  }
  append_runs(blocks_, payload);
}

// What the contexts are chosen by: how often each step occurs under each old context, and which contexts are left. From
// a sample if there are many elements.
template <class Element>
Steps TileCodec::survey(const std::byte* before, const std::byte* after, ContextRange range) {
  using Bits = typename Element::Bits;
  const size_t stride = coded_ < 64 * kChunk ? kChunk : 8 * kChunk;
  std::array<Pair, kChunk> pairs;
  std::array<uint64_t, words_for(kChunk)> extra, crossed;
  Steps steps;
  histogram_.clear();
  size_t seen = 0;
  for (const Run& run : runs_) {
    for (size_t at = (run.coded + stride - 1) / stride * stride; at < run.coded + run.size; at += stride) {
      const size_t n = std::min(kChunk, run.coded + run.size - at), first = run.first + at - run.coded;
      const std::byte *from = before + first * sizeof(Bits), *to = after + first * sizeof(Bits);
      pairs_of(Element(), from, to, n, range, pairs.data(), extra.data(), crossed.data());
      histogram_.add(std::span(pairs).first(n));
      each_bit(std::span(crossed).first(words_for(n)), [&](size_t i) {
        ++steps.transitions[context_of(pairs[i])][context_of<Element>(load<Bits>(to, i), range)];
      });
      seen += n;
    }
  }
  steps.histogram = histogram_.total();
  // As many as there are, so that they weigh against the tables.
  const auto times = static_cast<uint32_t>((coded_ + seen / 2) / std::max<size_t>(1, seen));
  for (auto& counts : steps.histogram.count) {
    for (uint32_t& n : counts) n *= times;
  }
  for (auto& row : steps.transitions) {
    for (uint32_t& n : row) n *= times;
  }
  return steps;
}

template <class Element>
void TileCodec::encode_sparse(const std::byte* before, const std::byte* after, ContextRange range,
                              std::vector<std::byte>& payload) {
  using Bits = typename Element::Bits;
  form_contexts<Element>(before, range);
  changes_.resize(changed_);
  Change* change = changes_.data();
  for (const Run& run : runs_) {
    const std::byte *from = before + run.first * sizeof(Bits), *to = after + run.first * sizeof(Bits);
    each_bit(std::span(&changed_bits_[run.first / kWord], words_for(run.size)), [&](size_t i) {
      const Bits now = load<Bits>(to, i);
      const uint32_t context = contexts_[run.coded + i];
      *change++ = {.element = static_cast<uint32_t>(run.coded + i),
                   .number = step_number<Element>(load<Bits>(from, i), now),
                   .list = context_of<Element>(now, range) == context ? context : Change::kCrossed};
    });
  }
  change_coder_.encode(changes_, std::span(contexts_).first(coded_), range.last + 1, payload);
}

template <class Element>
void TileCodec::encode_dense(const std::byte* before, const std::byte* after, ContextRange range,
                             std::vector<std::byte>& payload) {
  using Bits = typename Element::Bits;
  pairs_.resize(coded_);
  extra_.clear();
  crossed_.clear();
  away_.clear();
  histogram_.clear();
  Crossings crossings;
  std::array<uint64_t, words_for(kPiece)> extra, crossed;
  for (const Run& piece : pieces_) {
    const std::byte *from = before + piece.first * sizeof(Bits), *to = after + piece.first * sizeof(Bits);
    const std::span pairs(&pairs_[piece.coded], piece.size);
    pairs_of(Element(), from, to, piece.size, range, pairs.data(), extra.data(), crossed.data());
    histogram_.add(pairs);
    each_bit(std::span(extra).first(words_for(piece.size)), [&](size_t i) {
      const uint32_t number = step_number<Element>(load<Bits>(from, i), load<Bits>(to, i)),
                     bits = extra_bits(symbol_in(pairs[i]));
      extra_.put(number & ((1U << bits) - 1), bits);
    });
    if constexpr (Element::kFloat)
      note_crossings<Element>(to, piece, range, std::span(crossed).first(words_for(piece.size)), crossings);
  }
  const Histogram histogram = histogram_.total();
  if constexpr (Element::kFloat) {
    const std::vector<std::byte> told = encode_crossings<Element>(after, range, crossings);
    append_varint(payload, told.size());
    append_bytes(payload, told);
  }
  encoder_.encode(pairs_, histogram, extra_.finish(), shape(), payload);
}

template <class Element>
TileMode TileCodec::encode_part(const std::byte* before, const std::byte* after, size_t size,
                                std::vector<std::byte>& payload) {
  const size_t count = size / sizeof(typename Element::Bits), begin = payload.size();
  if (!find_changes<Element>(before, after, count)) {
    append(payload, TileMode::kUnchanged);
    return TileMode::kUnchanged;
  }
  append(payload, TileMode::kSparse);
  choose_blocks(count, kBlockElements<Element>, payload);
  ContextRange range = choose_range<Element>(before, count);
  const auto [sparse, merge] = choose_contexts(survey<Element>(before, after, range), kShort * changed_ < coded_);
  if constexpr (Element::kFloat) {
    range = {.base = range.base + merge, .last = range.last - merge};
    append(payload, static_cast<uint8_t>(range.base));
    append(payload, static_cast<uint8_t>(range.last));
  }
  TileMode mode = TileMode::kSparse;
  if (sparse) {
    encode_sparse<Element>(before, after, range, payload);
  } else {
    mode = TileMode::kDense;
    payload[begin] = static_cast<std::byte>(mode);
    encode_dense<Element>(before, after, range, payload);
  }
  if (payload.size() - begin <= size) return mode;
  payload.resize(begin);
  append_raw(before, after, size, payload);
  return TileMode::kRaw;
}

template <class Element>
void TileCodec::form_contexts(const std::byte* values, ContextRange range) {
  contexts_.resize(coded_);
  for (const Run& run : runs_) {
    const std::byte* first = values + run.first * sizeof(typename Element::Bits);
    contexts_of(Element(), first, run.size, range, &contexts_[run.coded]);
  }
}

// The distance to an edge as a power of the square root of 2, in steps of context 0.
uint32_t reach(Edge edge, uint32_t context) {
  const auto power = static_cast<uint32_t>(std::bit_width(edge.distance) - 1);
  const uint64_t squared = uint64_t{edge.distance} * edge.distance;
  return 2 * (power + context) + static_cast<uint32_t>(squared >> (2 * power + 1));
}

// The context of a candidate's crossing: its reach, counted down from the farthest, and on which side the edge is.
uint8_t crossing_context(Edge edge, uint32_t context, const Crossings& crossings) {
  const auto nearer = std::clamp<int32_t>(
      static_cast<int32_t>(crossings.reach) - static_cast<int32_t>(reach(edge, context)), 0, kContexts / 2 - 1);
  return static_cast<uint8_t>(2 * nearer + (edge.up ? 1 : 0));
}

constexpr bool is_up(uint32_t crossing_context) {
  return (crossing_context & 1U) != 0;
}

template <class Element>
NearEdges near_edges(ContextRange range, const Crossings& crossings) {
  NearEdges near;
  near.from.fill(~0U);
  for (uint64_t c = 0; c <= range.last; ++c) {
    const uint64_t limit = crossings.limits[c], edge = (range.base + c) << Element::kMantissa,
                   next = edge + (uint64_t{1} << Element::kMantissa);
    if (limit == 0) continue;
    if (c > 0) near.below[c] = static_cast<uint32_t>(std::min<uint64_t>(edge + limit, ~0U));
    if (c < range.last) near.from[c] = static_cast<uint32_t>(next - std::min(next, limit));
  }
  return near;
}

// crossing_context() of every magnitude of a 16-bit type that is a candidate: 32 KiB, which stay in a core's cache.
template <class Element>
void fill_crossing_contexts(ContextRange range, const Crossings& crossings, std::vector<uint8_t>& table) {
  constexpr size_t kMagnitudes = size_t{1} << 15;
  table.resize(kMagnitudes + kLookUpSlack);
  const NearEdges near = near_edges<Element>(range, crossings);
  const auto fill = [&](uint32_t context, size_t begin, size_t end) {
    for (size_t magnitude = begin; magnitude < std::min(end, kMagnitudes); ++magnitude) {
      const Edge edge = nearest_edge<Element>(static_cast<uint32_t>(magnitude), context, range);
      table[magnitude] = crossing_context(edge, context, crossings);
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
void TileCodec::find_candidates(const std::byte* after, ContextRange range, const Crossings& crossings) {
  using Bits = typename Element::Bits;
  constexpr bool kTable = sizeof(Bits) == 2;
  if constexpr (kTable) fill_crossing_contexts<Element>(range, crossings, table_);
  const NearEdges near = near_edges<Element>(range, crossings);
  candidate_bits_.resize(words_for(coded_));
  if (candidate_room_.size() < coded_ + kWord) candidate_room_.resize(coded_ + kWord);
  uint8_t* contexts = candidate_room_.data();
  for (const Run& piece : pieces_) {
    const std::byte* values = after + piece.first * sizeof(Bits);
    const std::span bits(&candidate_bits_[piece.coded / kWord], words_for(piece.size));
    near_bits(Element(), values, piece.size, range, near, bits.data());
    if constexpr (kTable) {
      contexts = look_up(Element(), values, bits, table_.data(), contexts);
    } else {
      each_bit(bits, [&](size_t i) {
        const Bits value = load<Bits>(values, i);
        const uint32_t context = context_of<Element>(value, range);
        const Edge edge = nearest_edge<Element>(Element::magnitude(value), context, range);
        *contexts++ = crossing_context(edge, context, crossings);
      });
    }
  }
  candidate_contexts_ = std::span(candidate_room_.data(), contexts);
}

template <class Element>
void TileCodec::note_crossings(const std::byte* values, const Run& piece, ContextRange range,
                               std::span<const uint64_t> crossed, Crossings& crossings) {
  each_bit(crossed, [&](size_t i) {
    const auto value = load<typename Element::Bits>(values, i);
    const uint32_t context = context_of<Element>(value, range), old = context_of(pairs_[piece.coded + i]);
    const Edge edge = nearest_edge<Element>(Element::magnitude(value), context, range);
    crossings.limits[context] = std::max(crossings.limits[context], edge.distance);
    crossings.reach = std::max(crossings.reach, reach(edge, context));
    crossed_.push_back(static_cast<uint32_t>(piece.coded + i));
    away_.push_back(old - context);
  });
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

template <class Element>
std::vector<std::byte> TileCodec::encode_crossings(const std::byte* after, ContextRange range, Crossings crossings) {
  std::vector<std::byte> out;
  if (crossed_.empty()) return out;
  for (uint32_t& limit : crossings.limits) limit = code_limit(limit_code(limit));
  uint32_t present = 0;
  for (uint32_t c = 0; c < kContexts; ++c) present |= static_cast<uint32_t>(crossings.limits[c] > 0) << c;
  append_varint(out, present);
  for (const uint32_t limit : crossings.limits) {
    if (limit > 0) append(out, limit_code(limit));
  }
  append(out, static_cast<uint8_t>(crossings.reach));

  find_candidates<Element>(after, range, crossings);
  candidate_pairs_.resize(candidate_contexts_.size());
  for (size_t k = 0; k < candidate_pairs_.size(); ++k) candidate_pairs_[k] = pair_of(candidate_contexts_[k], 0);
  ranks_.resize(candidate_bits_.size());
  steps_.resize(crossed_.size());
  gaps_of(candidate_bits_, candidate_bits_, crossed_, ranks_, steps_.data());
  BitWriter extra;
  size_t place = 0;  // among the candidates
  for (size_t k = 0; k < crossed_.size(); ++k) {
    Pair& pair = candidate_pairs_[place += steps_[k]];
    const uint32_t away = away_[k], context = context_of(pair);
    const uint32_t z = zigzag(static_cast<uint8_t>(is_up(context) ? -away : away)), symbol = symbol_of(z);
    pair = pair_of(context, symbol);
    if (const uint32_t bits = extra_bits(symbol); bits > 0) extra.put(z & ((1U << bits) - 1), bits);
  }
  histogram_.clear();
  histogram_.add(candidate_pairs_);
  Histogram histogram = histogram_.total();
  const uint32_t coarse = best_coarseness(histogram);
  append(out, static_cast<uint8_t>(coarse));
  if (coarse > 0) {
    for (Pair& pair : candidate_pairs_) pair = pair_of(coarsened(context_of(pair), coarse), symbol_in(pair));
  }
  encoder_.encode(candidate_pairs_, histogram, extra.finish(), shape(), out);
  return out;
}

template <class Element>
Status TileCodec::decode_crossings(const std::byte* after, ContextRange range, std::span<const std::byte> in) {
  const uint64_t present = LATHE_TRY(take_varint(in));
  Crossings crossings;
  for (uint32_t c = 0; c < kContexts; ++c) {
    if ((present >> c & 1U) == 0) continue;
    const auto code = LATHE_TRY(take<uint8_t>(in));
    if (code == 0 || code > kContexts) return corruption("a crossing lies farther than can be");
    crossings.limits[c] = code_limit(code);
  }
  crossings.reach = LATHE_TRY(take<uint8_t>(in));
  find_candidates<Element>(after, range, crossings);
  const uint32_t coarse = LATHE_TRY(take<uint8_t>(in));
  if (coarse > kMaxCoarse) return corruption("the contexts of crossings are impossibly coarse");
  for (uint8_t& context : candidate_contexts_) context = coarsened(context, coarse);
  std::vector<uint8_t>& symbols = candidate_symbols_;
  symbols.resize(candidate_contexts_.size());
  BitReader bits(LATHE_TRY(decoder_.decode(in, kCrossingAlphabet, candidate_contexts_, symbols)));
  away_.clear();
  steps_.clear();
  bits_.resize(words_for(symbols.size()));
  nonzero_bits(symbols, bits_.data());
  size_t next = 0;
  each_bit(bits_, [&](size_t k) {
    const uint32_t z = number_of(symbols[k], bits.get(extra_bits(symbols[k])));
    const uint32_t away = unzigzag(static_cast<uint8_t>(z));
    away_.push_back(is_up(candidate_contexts_[k]) ? -away : away);
    steps_.push_back(static_cast<uint32_t>(k - next));
    next = k + 1;
  });
  if (!bits.exact() || !in.empty()) return corruption("the crossings do not end where they should");
  crossed_.resize(away_.size());
  place(candidate_bits_, steps_, crossed_.data());
  for (size_t k = 0; k < crossed_.size(); ++k) {
    uint8_t& context = contexts_[crossed_[k]];
    context = static_cast<uint8_t>(context + away_[k]);
    if (context > range.last) return corruption("a crossing leads to no context");
  }
  return {};
}

template <class Element>
bool TileCodec::apply_steps(const std::byte* known, std::span<const std::byte> extra, Direction direction,
                            std::byte* out) {
  using Bits = typename Element::Bits;
  BitReader bits(extra);
  std::array<Bits, kChunk> numbers;
  std::array<uint64_t, words_for(kChunk)> large;
  for (const Run& run : runs_) {
    for (size_t done = 0; done < run.size; done += kChunk) {
      const size_t n = std::min(kChunk, run.size - done), offset = (run.first + done) * sizeof(Bits);
      const uint8_t* symbols = &symbols_[run.coded + done];
      std::copy_n(symbols, n, numbers.begin());
      sixteen_bits(std::span(symbols, n), large.data());
      each_bit(std::span(large).first(words_for(n)), [&](size_t i) {
        numbers[i] = static_cast<Bits>(number_of(symbols[i], bits.get(extra_bits(symbols[i]))));
      });
      step_from(Element(), known + offset, numbers.data(), n, direction == Direction::kBackward, out + offset);
    }
  }
  return bits.exact();
}

template <class Element>
Status TileCodec::decode_sparse(Direction direction, std::span<const std::byte> known, ContextRange range,
                                std::span<const std::byte>& payload, std::byte* out) {
  LATHE_TRY(change_coder_.decode(payload, contexts_, range.last + 1, kAlphabet<Element>, changes_));
  std::memcpy(out, known.data(), known.size());
  const bool back = direction == Direction::kBackward;
  auto run = runs_.begin();
  for (const Change& change : changes_) {
    if (change.element < run->coded) run = runs_.begin();  // the next list
    while (change.element >= run->coded + run->size) ++run;
    const size_t i = run->first + change.element - run->coded;
    store(out, i, stepped<Element>(load<typename Element::Bits>(known.data(), i), change.number, back));
  }
  return {};
}

template <class Element>
Status TileCodec::decode_dense(Direction direction, std::span<const std::byte> known, ContextRange range,
                               std::span<const std::byte>& payload, std::byte* out) {
  if constexpr (Element::kFloat) {
    const uint64_t size = LATHE_TRY(take_varint(payload));
    const auto crossings = LATHE_TRY(take_bytes(payload, size));
    if (direction == Direction::kBackward && size > 0)
      LATHE_TRY(decode_crossings<Element>(known.data(), range, crossings));
  }
  symbols_.resize(coded_);
  const auto extra = LATHE_TRY(decoder_.decode(payload, kAlphabet<Element>, contexts_, symbols_));
  if (coded_ * sizeof(typename Element::Bits) < known.size()) std::memcpy(out, known.data(), known.size());
  if (!apply_steps<Element>(known.data(), extra, direction, out))
    return corruption("the steps do not end where they should");
  return {};
}

template <class Element>
Status TileCodec::decode_part(TileMode mode, Direction direction, std::span<const std::byte> known,
                              std::span<const std::byte>& payload, std::byte* out) {
  blocks_.resize((known.size() + kCodedBlock - 1) / kCodedBlock);
  LATHE_TRY(take_runs(payload, blocks_));
  list_runs(known.size() / sizeof(typename Element::Bits), kBlockElements<Element>);
  ContextRange range;
  if constexpr (Element::kFloat) {
    range.base = LATHE_TRY(take<uint8_t>(payload));
    range.last = LATHE_TRY(take<uint8_t>(payload));
    if (range.last >= kContexts) return corruption("a part has an impossible range of exponents");
  }
  form_contexts<Element>(known.data(), range);
  if (mode == TileMode::kSparse) return decode_sparse<Element>(direction, known, range, payload, out);
  return decode_dense<Element>(direction, known, range, payload, out);
}

TileMode TileCodec::encode(std::span<const TilePart> parts, std::span<const std::byte> before,
                           std::span<const std::byte> after, std::vector<std::byte>& payload) {
  TileMode mode = TileMode::kUnchanged;
  uint64_t largest = 0;
  for (const TilePart& part : parts) {
    const TileMode done = with_element(part.type, [&](auto element) {
      return encode_part<decltype(element)>(&before[part.offset], &after[part.offset], part.size, payload);
    });
    if (done == TileMode::kUnchanged || part.size < largest) continue;
    mode = done;
    largest = part.size;
  }
  return mode;
}

Status TileCodec::decode(std::span<const TilePart> parts, Direction direction, std::span<const std::byte> known,
                         std::span<const std::byte> payload, std::span<std::byte> out) {
  for (const TilePart& part : parts) {
    const auto from = known.subspan(part.offset, part.size);
    std::byte* to = &out[part.offset];
    const auto mode = LATHE_TRY(take<TileMode>(payload));
    switch (mode) {
      case TileMode::kUnchanged:
        std::memcpy(to, from.data(), part.size);
        break;
      case TileMode::kRaw: {
        const auto changes = LATHE_TRY(take_bytes(payload, part.size));
        for (size_t i = 0; i < part.size; ++i) to[i] = from[i] ^ changes[i];
        break;
      }
      case TileMode::kSparse:
      case TileMode::kDense:
        LATHE_TRY(with_element(part.type, [&](auto element) {
          return decode_part<decltype(element)>(mode, direction, from, payload, to);
        }));
        break;
      default:
        return corruption("a part has an unknown mode");
    }
  }
  return payload.empty() ? Status() : Status(corruption("something stands behind the last part"));
}

}  // namespace lathe::checkpoint
