// Symbol streams: small numbers, each under one of 32 contexts, coded close to their conditional entropy.
//
// The coder is rANS (Duda, arXiv 1311.2540) with one static table per context: 32-bit states, 16-bit words, many states
// side by side (element i belongs to lane i mod lanes) that share one sequence of words, so that the long chain of
// multiplications is many short ones. Numbers of 16 and more are coded as their leading three bits (a symbol) and the
// bits behind those, which are close to random, as they are.
// Threads: values.
// Format page: docs/formats/delta.md, "Symbol streams".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace lathe::checkpoint {

inline constexpr uint32_t kContexts = 32;
inline constexpr uint32_t kSymbols = 128;  // 16 direct ones, then four for each power of two up to 2^31

// The symbol of a number below 2^32, and how many bits follow it.
constexpr uint32_t symbol_of(uint32_t number) {
  if (number < 16) return number;
  const auto power = static_cast<uint32_t>(31 - __builtin_clz(number));
  return 4 * power + ((number >> (power - 2)) & 3U);
}
constexpr uint32_t extra_bits(uint32_t symbol) {
  return symbol < 16 ? 0 : symbol / 4 - 2;
}
constexpr uint32_t number_of(uint32_t symbol, uint32_t extra) {
  return symbol < 16 ? symbol : ((4U | (symbol & 3U)) << (symbol / 4 - 2)) | extra;
}

class BitWriter {
 public:
  void put(uint32_t value, uint32_t bits) {  // at most 32, the lowest first; `value` has no others
    pending_ |= uint64_t{value} << filled_;
    filled_ += bits;
    if (filled_ >= 32) flush_word();
  }
  // Ends the sequence; the rest of the last byte is zeros.
  std::span<const std::byte> finish();
  uint64_t bits() const { return 8 * bytes_.size() + filled_; }
  void clear();

 private:
  void flush_word();
  std::vector<std::byte> bytes_;
  uint64_t pending_ = 0;
  uint32_t filled_ = 0;
};

// Reads zeros behind the end; exact() then says so.
class BitReader {
 public:
  explicit BitReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  uint32_t get(uint32_t bits) {  // at most 32
    if (filled_ < bits) refill();
    const auto value = static_cast<uint32_t>(pending_ & ((uint64_t{1} << bits) - 1));
    pending_ >>= bits;
    filled_ -= bits;
    consumed_ += bits;
    return value;
  }
  // Everything was read, no more, and the unused bits are zeros.
  bool exact() const { return consumed_ <= 8 * bytes_.size() && consumed_ + 8 > 8 * bytes_.size() && pending_ == 0; }

 private:
  void refill();  // to 32 bits or more

  std::span<const std::byte> bytes_;
  size_t next_ = 0;
  uint64_t consumed_ = 0;
  uint64_t pending_ = 0;
  uint32_t filled_ = 0;
};

struct Histogram {
  std::array<std::array<uint32_t, kSymbols>, kContexts> count{};
  // Contexts 0 .. `first` become one, and the rest move down behind it.
  Histogram merged(uint32_t first) const;
};

// Counts in four tables in turn, so that equal elements in a row do not wait for each other's store.
class HistogramBuilder {
 public:
  void clear() { parts_.assign(kParts, {}); }
  void add(const uint8_t* contexts, const uint8_t* symbols, size_t count);
  Histogram total() const;

 private:
  static constexpr size_t kParts = 4;
  std::vector<Histogram> parts_ = std::vector<Histogram>(kParts);
};

// One static table per context, as coded: the most frequent symbol takes what the others' frequencies, rounded to five
// significant bits, leave of 2^precision. A context without a table has symbol 0 only.
class SymbolModel {
 public:
  static SymbolModel fit(const Histogram& histogram);

  double cost(const Histogram& histogram) const;  // bits of the symbols under these tables
  int precision() const { return precision_; }
  uint32_t frequency(uint32_t context, uint32_t symbol) const { return frequency_[context][symbol]; }

  void write(std::vector<std::byte>& out) const;
  // kCorruption for tables that contradict themselves or name a symbol of `symbols` or more.
  static Result<SymbolModel> read(std::span<const std::byte>& in, int precision, uint32_t symbols);

 private:
  bool trivial(uint32_t context) const;  // only symbol 0

  int precision_ = 0;
  std::array<uint8_t, kContexts> main_{};
  std::array<std::array<uint32_t, kSymbols>, kContexts> frequency_{};  // sum to 2^precision
};

class SymbolEncoder {
 public:
  // Appends a sequence of numbers under contexts: symbols already formed, and the extra bits in the elements' order.
  // `histogram` counts exactly these.
  void encode(std::span<const uint8_t> contexts, std::span<const uint8_t> symbols, const Histogram& histogram,
              std::span<const std::byte> extra, std::vector<std::byte>& out);

 private:
  std::vector<uint16_t> words_;
};

// Reads what SymbolEncoder wrote from the front of `in`, which moves on: fills symbols.size() symbols, all below
// `alphabet`, and returns the extra bits' bytes.
Result<std::span<const std::byte>> decode_symbols(std::span<const std::byte>& in, uint32_t alphabet,
                                                  std::span<const uint8_t> contexts, std::span<uint8_t> symbols);

}  // namespace lathe::checkpoint
