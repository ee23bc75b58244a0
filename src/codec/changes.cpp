#include "codec/changes.h"

#include <algorithm>
#include <cmath>

#include "codec/bit_ranks.h"
#include "codec/bytes.h"

namespace lathe::codec {
namespace {

// Gaps of a list are close to geometric, so one byte, its scale, says nearly all about them: floor(2 log2(mean + 1)).
// They are divided by a power of two that brings the mean to 4 .. 8; the remainders are random bits, and the quotients
// of all lists share few tables.
constexpr uint32_t kMaxScale = 63;
uint32_t remainder_bits(uint32_t scale) {
  return scale < 4 ? 0 : (scale - 4) / 2;
}
uint8_t gap_context(uint32_t scale) {
  return static_cast<uint8_t>(scale < 4 ? scale : 4 + scale % 2);
}
constexpr uint32_t kGapAlphabet = kSymbols;

uint32_t low_bits(uint32_t bits) {
  return (1U << bits) - 1;
}

Error behind_the_end() {
  return corruption("a change lies past the last element");
}

uint32_t scale_of(std::span<const uint32_t> gaps) {
  uint64_t sum = 0;
  for (const uint32_t gap : gaps) sum += gap;
  const double mean = gaps.empty() ? 0 : static_cast<double>(sum) / static_cast<double>(gaps.size());
  return static_cast<uint32_t>(2 * std::log2(mean + 1));
}

}  // namespace

void ChangeCoder::find_gaps(const Begins& begins, std::span<const uint8_t> before, uint32_t contexts) {
  unchanged_.assign(words_for(before.size()), ~uint64_t{0});
  kind_.resize(unchanged_.size());
  ranks_.resize(unchanged_.size());
  for (const uint32_t i : std::span(elements_).first(begins[contexts]))
    unchanged_[i / 64] &= ~(uint64_t{1} << (i % 64));
  for (uint32_t c = 0; c < contexts; ++c) {
    const std::span elements(&elements_[begins[c]], begins[c + 1] - begins[c]);
    if (elements.empty()) continue;
    equal_bits(before, static_cast<uint8_t>(c), kind_.data());
    gaps_of(kind_, unchanged_, elements, ranks_, &gaps_[begins[c]]);
  }
}

void ChangeCoder::write(std::vector<std::byte>& out) {
  histogram_.clear();
  histogram_.add(pairs_);
  encoder_.encode(pairs_, histogram_.total(), extra_.finish(), StreamShape::kSmall, out);
}

void ChangeCoder::encode(std::span<const Change> changes, std::span<const uint8_t> before, uint32_t contexts,
                         std::vector<std::byte>& out) {
  Begins begins{};
  for (const Change& change : changes) ++begins[change.context + 1];
  for (uint32_t c = 0; c < contexts; ++c) begins[c + 1] += begins[c];
  elements_.resize(changes.size() + 1);  // one more, so that the address of an empty last list exists
  numbers_.resize(changes.size() + 1);
  gaps_.resize(changes.size() + 1);
  Begins next = begins;
  for (const Change& change : changes) {
    const uint32_t k = next[change.context]++;
    elements_[k] = change.element;
    numbers_[k] = change.number - 1;
  }
  find_gaps(begins, before, contexts);

  pairs_.resize(changes.size());
  extra_.clear();
  for (uint32_t c = 0; c < contexts; ++c) {
    const std::span gaps(&gaps_[begins[c]], begins[c + 1] - begins[c]);
    append_varint(out, gaps.size());
    if (gaps.empty()) continue;
    const uint32_t scale = scale_of(gaps), remainder = remainder_bits(scale);
    append(out, static_cast<uint8_t>(scale));
    for (size_t k = 0; k < gaps.size(); ++k) {
      const uint32_t quotient = gaps[k] >> remainder, symbol = symbol_of(quotient), bits = extra_bits(symbol);
      pairs_[begins[c] + k] = pair_of(gap_context(scale), symbol);
      extra_.put((quotient & low_bits(bits)) | (gaps[k] & low_bits(remainder)) << bits, bits + remainder);
    }
  }
  write(out);

  extra_.clear();
  for (uint32_t c = 0; c < contexts; ++c) {
    for (uint32_t k = begins[c]; k < begins[c + 1]; ++k) {
      const uint32_t symbol = symbol_of(numbers_[k]);
      pairs_[k] = pair_of(c, symbol);
      if (const uint32_t bits = extra_bits(symbol); bits > 0) extra_.put(numbers_[k] & low_bits(bits), bits);
    }
  }
  write(out);
}

Status ChangeCoder::place_crossed(const Begins& begins, std::span<uint8_t> before, uint32_t contexts) {
  constexpr uint8_t kNoContext = 255;
  uint64_t next = 0;
  for (size_t k = begins[contexts]; k < begins[contexts + 1]; ++k) {
    next += gaps_[k];
    if (next >= before.size()) return behind_the_end();
    before[next] = kNoContext;
    elements_[k] = static_cast<uint32_t>(next++);
  }
  return {};
}

// From gaps to elements, list by list.
Status ChangeCoder::place(const Begins& begins, std::span<const uint8_t> before, uint32_t contexts) {
  kind_.resize(words_for(before.size()));
  for (uint32_t c = 0; c < contexts; ++c) {
    const size_t begin = begins[c], size = begins[c + 1] - begin;
    if (size == 0) continue;
    equal_bits(before, static_cast<uint8_t>(c), kind_.data());
    if (codec::place(kind_, std::span(gaps_).subspan(begin, size), &elements_[begin]) != size) return behind_the_end();
  }
  return {};
}

Status ChangeCoder::decode(std::span<const std::byte>& in, std::span<uint8_t> before, uint32_t contexts,
                           uint32_t alphabet, std::vector<Change>& changes, uint32_t format) {
  const uint32_t lists = format == 1 ? contexts + 1 : contexts;
  Begins begins{};
  std::array<uint8_t, kContexts + 1> remainders{};
  contexts_.clear();
  number_contexts_.clear();
  for (uint32_t c = 0; c < lists; ++c) {
    const uint64_t count = LATHE_TRY(take_varint(in));
    if (count > before.size() - begins[c]) return corruption("more elements changed than there are");
    const uint32_t scale = count > 0 ? uint32_t{LATHE_TRY(take<uint8_t>(in))} : 0;
    if (scale > kMaxScale) return corruption("a list of changes has an impossible scale");
    remainders[c] = static_cast<uint8_t>(remainder_bits(scale));
    begins[c + 1] = begins[c] + static_cast<uint32_t>(count);
    contexts_.resize(begins[c + 1], gap_context(scale));
    number_contexts_.resize(begins[c + 1], static_cast<uint8_t>(c % contexts));
  }
  symbols_.resize(contexts_.size());
  gaps_.resize(contexts_.size());
  BitReader gap_bits(LATHE_TRY(decoder_.decode(in, kGapAlphabet, contexts_, symbols_)));
  for (uint32_t c = 0; c < lists; ++c) {
    const uint32_t remainder = remainders[c];
    for (size_t k = begins[c]; k < begins[c + 1]; ++k) {
      const uint64_t quotient = number_of(symbols_[k], gap_bits.get(extra_bits(symbols_[k])));
      const uint64_t gap = quotient << remainder | gap_bits.get(remainder);
      if (gap >= before.size()) return behind_the_end();
      gaps_[k] = static_cast<uint32_t>(gap);
    }
  }
  elements_.resize(gaps_.size());
  if (lists > contexts) LATHE_TRY(place_crossed(begins, before, contexts));
  LATHE_TRY(place(begins, before, contexts));
  BitReader number_bits(LATHE_TRY(decoder_.decode(in, alphabet, number_contexts_, symbols_)));
  changes.resize(symbols_.size());
  for (size_t k = 0; k < symbols_.size(); ++k)
    changes[k] = {.element = elements_[k],
                  .number = number_of(symbols_[k], number_bits.get(extra_bits(symbols_[k]))) + 1};
  if (!gap_bits.exact() || !number_bits.exact()) return corruption("the changes do not end where they should");
  return {};
}

}  // namespace lathe::codec
