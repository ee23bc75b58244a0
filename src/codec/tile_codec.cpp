#include "codec/tile_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "codec/bit_ranks.h"
#include "codec/bytes.h"
#include "codec/context_choice.h"
#include "codec/element_loops.h"

namespace lathe::codec {
namespace {

constexpr size_t kWord = 64;         // elements of a word of bits; runs begin at words
constexpr size_t kChunk = 512;       // elements of a sample, or whose steps are applied together
constexpr size_t kCodedBlock = 512;  // bytes: what is left out or coded

template <class Element>
constexpr size_t kBlockElements = kCodedBlock / sizeof(typename Element::Bits);

// Symbols that the steps of an element type can have.
template <class Element>
constexpr uint32_t kAlphabet = symbol_of(static_cast<typename Element::Bits>(-1)) + 1;

// Lists of fewer changes than one in so many elements are faster; and at any length they are a little smaller.
constexpr size_t kShort = 48;

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

}  // namespace

void TileCodec::list_coded_ranges(size_t count, size_t block_elements) {
  coded_ranges_.clear();
  size_t coded = 0;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if (blocks_[b] == 0) continue;
    const size_t first = b * block_elements, size = std::min(block_elements, count - first);
    if (coded_ranges_.empty() || coded_ranges_.back().first + coded_ranges_.back().size != first)
      coded_ranges_.push_back({.first = first, .coded = coded});
    coded_ranges_.back().size += size;
    coded += size;
  }
  coded_ = coded;
  pieces_.clear();
  for (const CodedRange& stretch : coded_ranges_) {
    for (size_t done = 0; done < stretch.size; done += kPieceElements)
      pieces_.push_back({.first = stretch.first + done,
                         .coded = stretch.coded + done,
                         .size = std::min(kPieceElements, stretch.size - done)});
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

void TileCodec::choose_blocks(size_t count, size_t block_elements, std::vector<std::byte>& payload) {
  list_coded_ranges(count, block_elements);
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
      list_coded_ranges(count, block_elements);
    }
  }
  append_runs(blocks_, payload);
}

// What the contexts are chosen by: how often each step occurs under each old context, and which contexts are left. From
// a sample if there are many elements.
template <class Element>
Steps TileCodec::survey(const std::byte* before, const std::byte* after, ContextRange range) {
  using Bits = typename Element::Bits;
  const size_t stride = coded_ < 64 * kChunk ? kChunk : 16 * kChunk;
  std::array<Bits, kChunk> numbers;
  std::array<Pair, kChunk> pairs;
  std::array<uint64_t, words_for(kChunk)> rare, crossed;
  RareFrom large;
  large.fill(kFewSymbols);
  Steps steps;
  histogram_.clear();
  size_t seen = 0;
  for (const CodedRange& stretch : coded_ranges_) {
    for (size_t at = (stretch.coded + stride - 1) / stride * stride; at < stretch.coded + stretch.size; at += stride) {
      const size_t n = std::min(kChunk, stretch.coded + stretch.size - at), first = stretch.first + at - stretch.coded;
      const std::byte *from = before + first * sizeof(Bits), *to = after + first * sizeof(Bits);
      steps_of(Element(), from, to, n, range, large, {numbers.data(), pairs.data(), rare.data(), crossed.data()});
      each_bit(std::span(rare).first(words_for(n)),
               [&](size_t i) { pairs[i] = pair_of(context_of(pairs[i]), symbol_of(numbers[i])); });
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
void TileCodec::write_crossings(const std::byte* after, ContextRange range, const Histogram& about, StreamShape shape,
                                std::vector<std::byte>& payload) {
  if constexpr (Element::kFloat) {
    told_.clear();
    crossings_.encode<Element>({.part = after, .pieces = pieces_}, range, about, shape, told_);
    append_varint(payload, told_.size());
    append_bytes(payload, told_);
  }
}

template <class Element>
void TileCodec::encode_sparse(const std::byte* before, const std::byte* after, ContextRange range,
                              const Histogram& about, std::vector<std::byte>& payload) {
  using Bits = typename Element::Bits;
  form_contexts<Element>(before, range);
  changes_.resize(changed_);
  Change* change = changes_.data();
  crossings_.clear();
  for (const CodedRange& stretch : coded_ranges_) {
    const std::byte *from = before + stretch.first * sizeof(Bits), *to = after + stretch.first * sizeof(Bits);
    each_bit(std::span(&changed_bits_[stretch.first / kWord], words_for(stretch.size)), [&](size_t i) {
      const Bits now = load<Bits>(to, i);
      const size_t element = stretch.coded + i;
      const uint8_t context = contexts_[element];
      *change++ = {.element = static_cast<uint32_t>(element),
                   .number = step_number<Element>(load<Bits>(from, i), now),
                   .context = context};
      if constexpr (Element::kFloat) {
        if (context_of<Element>(now, range) != context) crossings_.note(element, context, now);
      }
    });
  }
  write_crossings<Element>(after, range, about, StreamShape::kSmall, payload);
  change_coder_.encode(changes_, contexts_, range.last + 1, payload);
}

namespace {

// Which symbols the sample has seen, so that about how often they occur is known well enough to code them; and from
// which on they are rare, and have yet to be counted: a symbol that has no frequency could not be coded.
struct Sampled {
  Histogram histogram;
  RareFrom rare_from{};
};
Sampled sampled(const Histogram& about) {
  Sampled often;
  for (uint32_t c = 0; c < kContexts; ++c) {
    uint8_t& end = often.rare_from[c];
    for (uint32_t s = 0; s < kFewSymbols; ++s) {
      if (about.count[c][s] > 0) end = static_cast<uint8_t>(s + 1);
    }
    for (uint32_t s = 0; s < end; ++s) often.histogram.count[c][s] = std::max(about.count[c][s], 1U);
  }
  return often;
}

}  // namespace

template <class Element>
void TileCodec::encode_dense(const std::byte* before, const std::byte* after, ContextRange range,
                             const Histogram& about, std::vector<std::byte>& payload) {
  using Bits = typename Element::Bits;
  pairs_.resize(coded_);
  extra_.clear();
  crossings_.clear();
  Sampled symbols = sampled(about);
  std::array<Bits, kPieceElements> numbers;
  std::array<uint64_t, words_for(kPieceElements)> rare, crossed;
  for (const CodedRange& piece : pieces_) {
    const std::byte *from = before + piece.first * sizeof(Bits), *to = after + piece.first * sizeof(Bits);
    const std::span pairs(&pairs_[piece.coded], piece.size);
    steps_of(Element(), from, to, piece.size, range, symbols.rare_from,
             {numbers.data(), pairs.data(), rare.data(), crossed.data()});
    each_bit(std::span(rare).first(words_for(piece.size)), [&](size_t i) {
      const uint32_t context = context_of(pairs[i]), symbol = symbol_of(numbers[i]), bits = extra_bits(symbol);
      pairs[i] = pair_of(context, symbol);
      ++symbols.histogram.count[context][symbol];
      extra_.put(numbers[i] & ((1U << bits) - 1), bits);
    });
    if constexpr (Element::kFloat) {
      each_bit(std::span(crossed).first(words_for(piece.size)),
               [&](size_t i) { crossings_.note(piece.coded + i, context_of(pairs[i]), load<Bits>(to, i)); });
    }
  }
  write_crossings<Element>(after, range, about, StreamShape::kFast, payload);
  encoder_.encode(pairs_, symbols.histogram, extra_.finish(), StreamShape::kFast, payload);
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
  const Steps steps = survey<Element>(before, after, range);
  const uint32_t merge = contexts_to_merge(steps);
  const Histogram about = merged(steps.histogram, merge);
  if constexpr (Element::kFloat) {
    range = {.base = range.base + merge, .last = range.last - merge};
    append(payload, static_cast<uint8_t>(range.base));
    append(payload, static_cast<uint8_t>(range.last));
  }
  TileMode mode = TileMode::kSparse;
  if (kShort * changed_ < coded_) {
    encode_sparse<Element>(before, after, range, about, payload);
  } else {
    mode = TileMode::kDense;
    payload[begin] = static_cast<std::byte>(mode);
    encode_dense<Element>(before, after, range, about, payload);
  }
  if (payload.size() - begin <= size) return mode;
  payload.resize(begin);
  append_raw(before, after, size, payload);
  return TileMode::kRaw;
}

template <class Element>
void TileCodec::form_contexts(const std::byte* values, ContextRange range) {
  contexts_.resize(coded_);
  for (const CodedRange& stretch : coded_ranges_) {
    const std::byte* first = values + stretch.first * sizeof(typename Element::Bits);
    contexts_of(Element(), first, stretch.size, range, &contexts_[stretch.coded]);
  }
}

template <class Element>
bool TileCodec::apply_steps(const std::byte* known, std::span<const std::byte> extra, Direction direction,
                            std::byte* out) {
  using Bits = typename Element::Bits;
  BitReader bits(extra);
  std::array<Bits, kChunk> numbers;
  std::array<uint64_t, words_for(kChunk)> large;
  for (const CodedRange& stretch : coded_ranges_) {
    for (size_t done = 0; done < stretch.size; done += kChunk) {
      const size_t n = std::min(kChunk, stretch.size - done), offset = (stretch.first + done) * sizeof(Bits);
      const uint8_t* symbols = &symbols_[stretch.coded + done];
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
                                std::span<const std::byte>& payload, std::byte* out, uint32_t format) {
  LATHE_TRY(change_coder_.decode(payload, contexts_, range.last + 1, kAlphabet<Element>, changes_, format));
  std::memcpy(out, known.data(), known.size());
  const bool back = direction == Direction::kBackward;
  auto stretch = coded_ranges_.begin();
  for (const Change& change : changes_) {
    if (change.element < stretch->coded) stretch = coded_ranges_.begin();  // the next list
    while (change.element >= stretch->coded + stretch->size) ++stretch;
    const size_t i = stretch->first + change.element - stretch->coded;
    store(out, i, stepped<Element>(load<typename Element::Bits>(known.data(), i), change.number, back));
  }
  return {};
}

template <class Element>
Status TileCodec::decode_dense(Direction direction, std::span<const std::byte> known,
                               std::span<const std::byte>& payload, std::byte* out) {
  symbols_.resize(coded_);
  const auto extra = LATHE_TRY(decoder_.decode(payload, kAlphabet<Element>, contexts_, symbols_));
  if (coded_ * sizeof(typename Element::Bits) < known.size()) std::memcpy(out, known.data(), known.size());
  if (!apply_steps<Element>(known.data(), extra, direction, out))
    return corruption("the steps do not end where they should");
  return {};
}

template <class Element>
Status TileCodec::decode_part(TileMode mode, Direction direction, std::span<const std::byte> known,
                              std::span<const std::byte>& payload, std::byte* out, uint32_t format) {
  blocks_.resize((known.size() + kCodedBlock - 1) / kCodedBlock);
  LATHE_TRY(take_runs(payload, blocks_));
  list_coded_ranges(known.size() / sizeof(typename Element::Bits), kBlockElements<Element>);
  ContextRange range;
  if constexpr (Element::kFloat) {
    range.base = LATHE_TRY(take<uint8_t>(payload));
    range.last = LATHE_TRY(take<uint8_t>(payload));
    if (range.last >= kContexts) return corruption("a part has an impossible range of exponents");
  }
  form_contexts<Element>(known.data(), range);
  if constexpr (Element::kFloat) {
    if (format > 1 || mode == TileMode::kDense) {
      const uint64_t size = LATHE_TRY(take_varint(payload));
      const auto told = LATHE_TRY(take_bytes(payload, size));
      if (direction == Direction::kBackward)
        LATHE_TRY(
            crossings_.decode<Element>({.part = known.data(), .pieces = pieces_}, range, told, contexts_, format));
    }
  }
  if (mode == TileMode::kSparse) return decode_sparse<Element>(direction, known, range, payload, out, format);
  return decode_dense<Element>(direction, known, payload, out);
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
                         std::span<const std::byte> payload, std::span<std::byte> out, uint32_t format) {
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
          return decode_part<decltype(element)>(mode, direction, from, payload, to, format);
        }));
        break;
      default:
        return corruption("a part has an unknown mode");
    }
  }
  return payload.empty() ? Status() : Status(corruption("there are bytes after the last part"));
}

}  // namespace lathe::codec
