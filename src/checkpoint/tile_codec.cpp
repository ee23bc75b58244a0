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

constexpr size_t kChunk = 128;       // elements that loops look at together before they look at each
constexpr size_t kCodedBlock = 512;  // bytes: what is left out or coded

template <class Element>
constexpr size_t kBlockElements = kCodedBlock / sizeof(typename Element::Bits);

// Symbols that the steps of an element type can have.
template <class Element>
constexpr uint32_t kAlphabet = symbol_of(static_cast<typename Element::Bits>(-1)) + 1;

constexpr uint32_t kMaxCoarse = 4;
constexpr uint32_t kCrossingAlphabet = symbol_of(2 * kContexts - 1) + 1;

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
}

bool TileCodec::find_changed_blocks(const std::byte* before, const std::byte* after, size_t size) {
  bool any = false;
  blocks_.resize((size + kCodedBlock - 1) / kCodedBlock);
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const size_t offset = b * kCodedBlock;
    blocks_[b] = std::memcmp(before + offset, after + offset, std::min(kCodedBlock, size - offset)) != 0;
    any |= blocks_[b] != 0;
  }
  return any;
}

template <class Element>
void TileCodec::form_symbols(const std::byte* before, const std::byte* after) {
  symbols_.resize(coded_);
  changed_ = 0;
  for (const Run& run : runs_) {
    const size_t offset = run.first * sizeof(typename Element::Bits);
    symbols_of(Element(), before + offset, after + offset, run.size, &symbols_[run.coded]);
    changed_ += count_nonzero(&symbols_[run.coded], run.size);
  }
}

template <class Element>
void TileCodec::choose_blocks(const std::byte* before, const std::byte* after, size_t count,
                              std::vector<std::byte>& payload) {
  list_runs(count, kBlockElements<Element>);
  form_symbols<Element>(before, after);
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
      list_runs(count, kBlockElements<Element>);
      form_symbols<Element>(before, after);
    }
  }
  append_runs(blocks_, payload);
}

template <class Element>
uint32_t TileCodec::step_number(const std::byte* before, const std::byte* after, size_t i) {
  using Bits = typename Element::Bits;
  const Bits from = Element::ordinal(load<Bits>(before, i)), to = Element::ordinal(load<Bits>(after, i));
  return zigzag(static_cast<Bits>(to - from));
}

template <class Element>
void TileCodec::encode_sparse(const std::byte* before, const std::byte* after, ContextRange range,
                              std::vector<std::byte>& payload) {
  unchanged_.resize(words_for(coded_));
  equal_bits(std::span(symbols_).first(coded_), 0, unchanged_.data());
  changes_.resize(changed_);
  Change* change = changes_.data();
  auto run = runs_.begin();
  for (size_t word = 0; word < unchanged_.size(); ++word) {
    const size_t bits = std::min<size_t>(64, coded_ - 64 * word);
    for (uint64_t left = ~unchanged_[word] & (~uint64_t{0} >> (64 - bits)); left != 0; left &= left - 1) {
      const size_t i = 64 * word + static_cast<size_t>(std::countr_zero(left));
      while (i >= run->coded + run->size) ++run;
      const uint32_t symbol = symbols_[i];
      *change++ = {.element = static_cast<uint32_t>(i),
                   .number = symbol < 16 ? symbol : step_number<Element>(before, after, run->first + i - run->coded)};
    }
  }
  encode_changes(changes_, contexts_, Element::kFloat ? new_contexts_ : contexts_, range.last + 1, encoder_, payload);
}

template <class Element>
void TileCodec::encode_dense(const std::byte* before, const std::byte* after, ContextRange range,
                             std::vector<std::byte>& payload) {
  if constexpr (Element::kFloat) {
    const std::vector<std::byte> crossings = encode_crossings<Element>(after, range);
    append_varint(payload, crossings.size());
    append_bytes(payload, crossings);
  }
  extra_.clear();
  for (const Run& run : runs_) {
    for (size_t chunk = 0; chunk < run.size; chunk += kChunk) {
      const size_t end = std::min(run.size, chunk + kChunk);
      const uint8_t* symbols = &symbols_[run.coded];
      if (max_of(symbols + chunk, end - chunk) < 16) continue;
      for (size_t i = chunk; i < end; ++i) {
        const uint32_t bits = extra_bits(symbols[i]);
        if (bits > 0) extra_.put(step_number<Element>(before, after, run.first + i) & ((1U << bits) - 1), bits);
      }
    }
  }
  histogram_.clear();
  histogram_.add(contexts_.data(), symbols_.data(), coded_);
  encoder_.encode(contexts_, symbols_, histogram_.total(), extra_.finish(), payload);
}

template <class Element>
TileMode TileCodec::encode_part(const std::byte* before, const std::byte* after, size_t size,
                                std::vector<std::byte>& payload) {
  const size_t count = size / sizeof(typename Element::Bits), begin = payload.size();
  if (!find_changed_blocks(before, after, size)) {
    append(payload, TileMode::kUnchanged);
    return TileMode::kUnchanged;
  }
  append(payload, TileMode::kSparse);
  choose_blocks<Element>(before, after, count, payload);
  ContextRange range = choose_range<Element>(before, count);
  form_contexts<Element>(before, range, contexts_);
  const auto& new_contexts = Element::kFloat ? new_contexts_ : contexts_;
  if constexpr (Element::kFloat) form_contexts<Element>(after, range, new_contexts_);
  const auto [sparse, merge] = choose_contexts(contexts_.data(), new_contexts.data(), symbols_.data(), coded_);
  if constexpr (Element::kFloat) {
    lower(contexts_.data(), coded_, static_cast<uint8_t>(merge));
    lower(new_contexts_.data(), coded_, static_cast<uint8_t>(merge));
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
void TileCodec::form_contexts(const std::byte* values, ContextRange range, std::vector<uint8_t>& contexts) const {
  contexts.resize(coded_);
  for (const Run& run : runs_) {
    const std::byte* first = values + run.first * sizeof(typename Element::Bits);
    contexts_of(Element(), first, run.size, range, &contexts[run.coded]);
  }
}

// The distance to an edge as a power of the square root of 2, in steps of context 0.
uint32_t reach(Edge edge, uint32_t context) {
  const auto power = static_cast<uint32_t>(std::bit_width(edge.distance) - 1);
  const uint64_t squared = uint64_t{edge.distance} * edge.distance;
  return 2 * (power + context) + static_cast<uint32_t>(squared >> (2 * power + 1));
}

// 0 if an element of this context is no candidate; else 1 and the context of its crossing, which is its reach, counted
// down from the farthest, and on which side the edge is.
template <class Element>
[[gnu::always_inline]] inline uint8_t candidate(uint32_t magnitude, uint32_t context, ContextRange range,
                                                const Crossings& crossings) {
  const Edge edge = nearest_edge<Element>(magnitude, context, range);
  if (edge.distance > crossings.limits[context]) return 0;
  const auto nearer = std::clamp<int32_t>(
      static_cast<int32_t>(crossings.reach) - static_cast<int32_t>(reach(edge, context)), 0, kContexts / 2 - 1);
  return static_cast<uint8_t>(1 + 2 * nearer + (edge.up ? 1 : 0));
}

constexpr bool is_up(uint8_t crossing_context) {
  return (crossing_context & 1U) != 0;
}

// candidate() of every magnitude of a 16-bit type: 32 KiB, which stay in a core's cache.
template <class Element>
void fill_candidates(ContextRange range, const Crossings& crossings, std::vector<uint8_t>& table) {
  table.assign(size_t{1} << 15, 0);
  for (uint32_t c = 0; c <= range.last; ++c) {
    const size_t limit = crossings.limits[c];
    if (limit == 0) continue;
    const size_t edge = size_t{range.base + c} << Element::kMantissa, next = edge + (size_t{1} << Element::kMantissa);
    const size_t begin = c > 0 ? edge : next - std::min(next, limit);
    const size_t end = std::min(c < range.last ? next : edge + limit, table.size());
    for (size_t magnitude = begin; magnitude < end; ++magnitude)
      table[magnitude] = candidate<Element>(static_cast<uint32_t>(magnitude), c, range, crossings);
  }
}

template <class Element>
void TileCodec::find_candidates(const std::byte* after, std::span<const uint8_t> contexts, ContextRange range,
                                const Crossings& crossings) {
  using Bits = typename Element::Bits;
  constexpr bool kTable = sizeof(Bits) == 2;
  if constexpr (kTable) fill_candidates<Element>(range, crossings, table_);
  if (candidates_.size() <= coded_) {
    candidates_.resize(coded_ + 1);  // one more, since the loop writes before it knows
    candidate_contexts_.resize(coded_ + 1);
  }
  // Bytes may alias everything, which would have the loop read its pointers anew for each element.
  uint32_t* __restrict indices = candidates_.data();
  uint8_t* __restrict crossing_contexts = candidate_contexts_.data();
  const uint8_t* table = table_.data();
  size_t found = 0;
  for (const Run& run : runs_) {
    const std::byte* values = after + run.first * sizeof(Bits);
    for (size_t i = 0; i < run.size; ++i) {
      const uint32_t magnitude = Element::magnitude(load<Bits>(values, i));
      const uint8_t is =
          kTable ? table[magnitude] : candidate<Element>(magnitude, contexts[run.coded + i], range, crossings);
      indices[found] = static_cast<uint32_t>(run.coded + i);
      crossing_contexts[found] = static_cast<uint8_t>(is - 1);
      found += is != 0;
    }
  }
  candidate_count_ = found;
}

template <class Element>
Crossings TileCodec::find_crossings(const std::byte* after, ContextRange range) const {
  using Bits = typename Element::Bits;
  Crossings crossings;
  for (const Run& run : runs_) {
    for (size_t chunk = 0; chunk < run.size; chunk += kChunk) {
      const size_t n = std::min(kChunk, run.size - chunk), at = run.coded + chunk;
      if (std::memcmp(&new_contexts_[at], &contexts_[at], n) == 0) continue;
      for (size_t i = 0; i < n; ++i) {
        const uint8_t context = new_contexts_[at + i];
        if (context == contexts_[at + i]) continue;
        const uint32_t magnitude = Element::magnitude(load<Bits>(after, run.first + chunk + i));
        const Edge edge = nearest_edge<Element>(magnitude, context, range);
        crossings.limits[context] = std::max(crossings.limits[context], edge.distance);
        crossings.reach = std::max(crossings.reach, reach(edge, context));
      }
    }
  }
  for (uint32_t& limit : crossings.limits) limit = code_limit(limit_code(limit));
  return crossings;
}

// The contexts of crossings are coarser by 2^`coarse` powers of the square root of 2; the side stays.
void coarsen(std::span<uint8_t> contexts, uint32_t coarse) {
  for (uint8_t& c : contexts) c = static_cast<uint8_t>((c >> 1 >> coarse) << 1 | (c & 1U));
}

// Few crossings are not worth many tables.
uint32_t best_coarseness(Histogram histogram) {
  uint32_t best = 0;
  double best_bits = histogram_bits(histogram);
  for (uint32_t coarse = 1; coarse <= kMaxCoarse; ++coarse) {
    for (uint32_t c = 2; c < kContexts; ++c) {
      const uint32_t to = (c >> 2) << 1 | (c & 1U);
      if (to == c) continue;
      for (uint32_t s = 0; s < kSymbols; ++s) histogram.count[to][s] += std::exchange(histogram.count[c][s], 0);
    }
    const double bits = histogram_bits(histogram);
    if (bits < best_bits) best = coarse, best_bits = bits;
  }
  return best;
}

template <class Element>
std::vector<std::byte> TileCodec::encode_crossings(const std::byte* after, ContextRange range) {
  const Crossings crossings = find_crossings<Element>(after, range);
  std::vector<std::byte> out;
  uint32_t present = 0;
  for (uint32_t c = 0; c < kContexts; ++c) present |= static_cast<uint32_t>(crossings.limits[c] > 0) << c;
  if (present == 0) return out;
  append_varint(out, present);
  for (const uint32_t limit : crossings.limits) {
    if (limit > 0) append(out, limit_code(limit));
  }
  append(out, static_cast<uint8_t>(crossings.reach));

  find_candidates<Element>(after, new_contexts_, range, crossings);
  const std::span contexts(candidate_contexts_.data(), candidate_count_);
  BitWriter extra;
  candidate_symbols_.resize(candidate_count_);
  uint8_t* __restrict symbols = candidate_symbols_.data();
  for (size_t k = 0; k < candidate_count_; ++k) {
    const uint32_t i = candidates_[k], away = contexts_[i] - new_contexts_[i];
    const uint32_t z = zigzag(static_cast<uint8_t>(is_up(contexts[k]) ? -away : away));
    symbols[k] = static_cast<uint8_t>(symbol_of(z));
    if (const uint32_t bits = extra_bits(symbols[k]); bits > 0) extra.put(z & ((1U << bits) - 1), bits);
  }
  const auto count = [&] {
    histogram_.clear();
    histogram_.add(contexts.data(), candidate_symbols_.data(), contexts.size());
    return histogram_.total();
  };
  const uint32_t coarse = best_coarseness(count());
  coarsen(contexts, coarse);
  append(out, static_cast<uint8_t>(coarse));
  encoder_.encode(contexts, candidate_symbols_, count(), extra.finish(), out);
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
  find_candidates<Element>(after, contexts_, range, crossings);
  candidate_symbols_.resize(candidate_count_);
  const std::span candidate_contexts(candidate_contexts_.data(), candidate_count_);
  const uint32_t coarse = LATHE_TRY(take<uint8_t>(in));
  if (coarse > kMaxCoarse) return corruption("the contexts of crossings are impossibly coarse");
  coarsen(candidate_contexts, coarse);
  BitReader bits(LATHE_TRY(decode_symbols(in, kCrossingAlphabet, candidate_contexts, candidate_symbols_)));
  for (size_t k = 0; k < candidate_count_; ++k) {
    const uint32_t symbol = candidate_symbols_[k], z = number_of(symbol, bits.get(extra_bits(symbol)));
    const uint32_t away = unzigzag(static_cast<uint8_t>(z));
    uint8_t& context = contexts_[candidates_[k]];
    context = static_cast<uint8_t>(context + (is_up(candidate_contexts[k]) ? -away : away));
    if (context > range.last) return corruption("a crossing leads to no context");
  }
  if (!bits.exact() || !in.empty()) return corruption("the crossings do not end where they should");
  return {};
}

template <class Element>
bool TileCodec::apply_steps(const std::byte* known, std::span<const std::byte> extra, Direction direction,
                            std::byte* out) const {
  constexpr size_t kSize = sizeof(typename Element::Bits);
  BitReader bits(extra);
  std::array<uint32_t, kChunk> numbers;
  for (const Run& run : runs_) {
    for (size_t done = 0; done < run.size; done += kChunk) {
      const size_t n = std::min(kChunk, run.size - done), offset = (run.first + done) * kSize;
      const uint8_t* symbols = &symbols_[run.coded + done];
      for (size_t i = 0; i < n; ++i) numbers[i] = symbols[i];
      if (max_of(symbols, n) >= 16) {
        for (size_t i = 0; i < n; ++i) numbers[i] = number_of(symbols[i], bits.get(extra_bits(symbols[i])));
      }
      step_from(Element(), known + offset, numbers.data(), n, direction == Direction::kBackward, out + offset);
    }
  }
  return bits.exact();
}

template <class Element>
Status TileCodec::decode_sparse(Direction direction, std::span<const std::byte> known, ContextRange range,
                                std::span<const std::byte>& payload, std::byte* out) {
  LATHE_TRY(decode_changes(payload, contexts_, range.last + 1, kAlphabet<Element>, changes_));
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
  const auto extra = LATHE_TRY(decode_symbols(payload, kAlphabet<Element>, contexts_, symbols_));
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
  form_contexts<Element>(known.data(), range, contexts_);
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
