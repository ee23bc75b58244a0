// Symbol streams: small numbers, each under one of 32 contexts, coded close to their conditional entropy.
//
// The coder is rANS (Duda, arXiv 1311.2540; rans.h) with one static table per context: 32-bit states, 16-bit words,
// many interleaved states that share one sequence of words, so that one long chain of multiplications becomes many
// short ones. A number of 16 or more is coded as its leading three bits (a symbol); its lower bits, which are close to
// random, are stored as they are.
// Threads: values.
// Format page: docs/formats/delta.md, "Symbol streams".
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/result.h"

namespace lathe::codec {

inline constexpr uint32_t kContexts = 32;
inline constexpr uint32_t kSymbols = 128;    // kFewSymbols direct ones, then four for each power of two up to 2^31
inline constexpr uint32_t kFewSymbols = 16;  // are numbers without extra bits

using Pair = uint16_t;  // a context and a symbol under it
inline constexpr uint32_t kPairs = kContexts * kSymbols;
constexpr Pair pair_of(uint32_t context, uint32_t symbol) {
  return static_cast<Pair>(context * kSymbols + symbol);
}
constexpr uint32_t context_of(Pair pair) {
  return pair / kSymbols;
}
constexpr uint32_t symbol_in(Pair pair) {
  return pair % kSymbols;
}

// The symbol of a number below 2^32, and how many bits follow it. Without branches: which numbers are few is random.
constexpr uint32_t symbol_of(uint32_t number) {
  const auto power = static_cast<uint32_t>(31 - __builtin_clz(number | kFewSymbols));
  const uint32_t symbol = 4 * power + ((number >> (power - 2)) & 3U);
  return number < kFewSymbols ? number : symbol;
}
constexpr uint32_t extra_bits(uint32_t symbol) {
  return symbol < kFewSymbols ? 0 : symbol / 4 - 2;
}
constexpr uint32_t number_of(uint32_t symbol, uint32_t extra) {
  return symbol < kFewSymbols ? symbol : ((4U | (symbol & 3U)) << (symbol / 4 - 2)) | extra;
}

class BitWriter {
 public:
  void put(uint32_t value, uint32_t bits) {  // at most 32, the lowest first; `value` has no others
    if (bytes_.size() - size_ < sizeof pending_) grow();
    pending_ |= uint64_t{value} << filled_;
    filled_ += bits;
    std::memcpy(&bytes_[size_], &pending_, sizeof pending_);  // always: whether a byte is full is random
    size_ += filled_ / 8;
    pending_ >>= filled_ & ~7U;
    filled_ %= 8;
  }
  // Elias's gamma code of a number from 1 on: as many zeros as it has bits below its top one, a one, and those bits.
  void put_gamma(uint32_t number) {  // below 2^32
    const auto low = static_cast<uint32_t>(31 - __builtin_clz(number));
    put(1U << low, low + 1);
    put(number & ((1U << low) - 1), low);
  }
  // Ends the sequence; the rest of the last byte is zeros.
  std::span<const std::byte> finish();
  void clear();

 private:
  void grow();

  std::vector<std::byte> bytes_;
  size_t size_ = 0;       // of them, how many are written
  uint64_t pending_ = 0;  // the beginning of the next byte
  uint32_t filled_ = 0;   // its bits, fewer than eight
};

// Reads zeros past the end; exact() then says so.
class BitReader {
 public:
  explicit BitReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  uint32_t get(uint32_t bits) {  // at most 32
    const uint64_t value = window() & ((uint64_t{1} << bits) - 1);
    position_ += bits;
    return static_cast<uint32_t>(value);
  }
  // A number in the gamma code; 0 where there is none.
  uint32_t get_gamma() {
    const auto low = static_cast<uint32_t>(std::countr_zero(window() | uint64_t{1} << 32));
    if (low > 31) return 0;
    position_ += low + 1;
    return 1U << low | get(low);
  }
  // Everything was read, no more, and the unused bits are zeros.
  bool exact() const {
    const uint64_t all = 8 * bytes_.size();
    return position_ <= all && position_ + 8 > all && window() == 0;
  }

 private:
  uint64_t window() const {  // 57 bits or more from the position on
    const size_t byte = position_ / 8;
    uint64_t eight = 0;
    if (byte + sizeof eight <= bytes_.size()) {
      std::memcpy(&eight, &bytes_[byte], sizeof eight);
    } else if (byte < bytes_.size()) {
      std::memcpy(&eight, &bytes_[byte], bytes_.size() - byte);
    }
    return eight >> (position_ % 8);
  }

  std::span<const std::byte> bytes_;
  uint64_t position_ = 0;  // in bits
};

using SymbolCounts = std::array<uint32_t, kSymbols>;  // or frequencies: of each symbol in one context

struct Histogram {
  std::array<SymbolCounts, kContexts> count{};
};

double n_log_n(uint64_t n);  // to base 2; 0 for 0

// Bits of one context's symbols under the best code, and of its table.
double table_bits(const SymbolCounts& counts);

// Counts in four tables in turn, so that equal elements in a row do not wait for each other's store.
class HistogramBuilder {
 public:
  void clear() { counts_.assign(kParts * kPart, 0); }
  void add(std::span<const Pair> pairs);
  Histogram total() const;

 private:
  static constexpr size_t kParts = 4;
  // Not a multiple of 4 KiB, at whose distance a CPU takes a store for one to the address that it loads.
  static constexpr size_t kPart = kPairs + 272;
  std::vector<uint32_t> counts_ = std::vector<uint32_t>(kParts * kPart);
};

// Whether a few dozen bytes are worth saving (precise tables, few lanes), or time is.
enum class StreamShape { kSmall, kFast };

// One static table per context, as coded: the most frequent symbol takes what the others' frequencies, rounded to five
// significant bits, leave of 2^precision. A context without a table has symbol 0 only.
class SymbolModel {
 public:
  static SymbolModel fit(const Histogram& histogram, StreamShape shape);

  double cost(const Histogram& histogram) const;  // bits of the symbols under these tables
  int precision() const { return precision_; }
  uint32_t frequency(uint32_t context, uint32_t symbol) const { return frequency_[context][symbol]; }
  bool trivial(uint32_t context) const { return frequency_[context][0] == 1U << precision_; }  // only symbol 0

  void write(std::vector<std::byte>& out) const;
  // kCorruption for tables that contradict themselves or name a symbol of `symbols` or more.
  static Result<SymbolModel> read(std::span<const std::byte>& in, int precision, uint32_t symbols);

 private:
  int precision_ = 0;
  std::array<uint8_t, kContexts> main_{};
  std::array<SymbolCounts, kContexts> frequency_{};  // sum to 2^precision
};

class SymbolEncoder {
 public:
  // Appends a sequence of numbers under contexts: symbols already formed, and the extra bits in the elements' order.
  // `histogram` counts these.
  void encode(std::span<const Pair> pairs, const Histogram& histogram, std::span<const std::byte> extra,
              StreamShape shape, std::vector<std::byte>& out);

 private:
  std::vector<uint16_t> words_;
};

class SymbolDecoder {
 public:
  // Reads what SymbolEncoder wrote from the front of `in`, which moves on: fills symbols.size() symbols, all below
  // `alphabet`, and returns the extra bits' bytes.
  Result<std::span<const std::byte>> decode(std::span<const std::byte>& in, uint32_t alphabet,
                                            std::span<const uint8_t> contexts, std::span<uint8_t> symbols);

 private:
  std::vector<uint32_t> slots_;
};

}  // namespace lathe::codec
