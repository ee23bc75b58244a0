#include "delta/numbers.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

namespace lathe::delta {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{4} << 20;

template <class Word>
Word load(const std::byte* from) {
  Word word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

// Of every type: NaN and infinities are the numbers whose exponent bits are all ones.
template <class Word>
bool all_finite(std::span<const std::byte> bytes, Word exponent_mask) {
  bool finite = true;
  for (size_t i = 0; i + sizeof(Word) <= bytes.size(); i += sizeof(Word))
    finite &= (load<Word>(bytes.data() + i) & exponent_mask) != exponent_mask;
  return finite;
}

float half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16, exponent = (bits >> 10) & 0x1FU;
  const uint32_t fraction = bits & 0x3FFU;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000U | fraction << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = std::ldexp(static_cast<float>(fraction), -24);
  return sign ? -small : small;
}

double number(Dtype dtype, const std::byte* from) {
  if (dtype == Dtype::kF64) return load<double>(from);
  if (dtype == Dtype::kF32) return static_cast<double>(load<float>(from));
  if (dtype == Dtype::kF16) return static_cast<double>(half(load<uint16_t>(from)));
  return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(load<uint16_t>(from)) << 16));
}

// Rounded once: a double goes through no float on its way, which could round it twice.
uint16_t nearest_bf16(double value) {
  auto narrow = static_cast<float>(value);
  if (!std::isfinite(narrow))
    return static_cast<uint16_t>(std::bit_cast<uint32_t>(narrow) >> 16 | (std::isnan(narrow) ? 0x40 : 0));
  // Rounded to odd: the float's last bit says whether anything was cut off.
  if (static_cast<double>(narrow) != value) {
    if (std::abs(static_cast<double>(narrow)) > std::abs(value)) narrow = std::nextafter(narrow, 0.0F);
    narrow = std::bit_cast<float>(std::bit_cast<uint32_t>(narrow) | 1U);
  }
  const auto bits = std::bit_cast<uint32_t>(narrow);
  return static_cast<uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

}  // namespace

bool is_floating(Dtype dtype) {
  return dtype == Dtype::kBF16 || dtype == Dtype::kF16 || dtype == Dtype::kF32 || dtype == Dtype::kF64;
}

bool all_finite(Dtype dtype, std::span<const std::byte> bytes) {
  switch (dtype) {
    case Dtype::kBF16:
      return all_finite<uint16_t>(bytes, 0x7F80U);
    case Dtype::kF16:
      return all_finite<uint16_t>(bytes, 0x7C00U);
    case Dtype::kF32:
      return all_finite<uint32_t>(bytes, 0x7F800000U);
    case Dtype::kF64:
      return all_finite<uint64_t>(bytes, 0x7FF0000000000000U);
    default:
      return true;
  }
}

Status check_finite(const ModelDir& dir, const TensorInfo& info) {
  std::vector<std::byte> piece(std::min(kPieceBytes, info.size()));
  for (uint64_t at = 0; at < info.size(); at += piece.size()) {
    const auto bytes = std::span(piece).first(std::min<uint64_t>(piece.size(), info.size() - at));
    LATHE_TRY(dir.read(info.name, at, bytes));
    if (!all_finite(info.dtype, bytes))
      return corruption("tensor " + info.name + " holds NaN or infinite values; the checkpoint is damaged");
  }
  return {};
}

Result<bool> same_numbers(const ModelDir& dir, std::string_view a, std::string_view b) {
  const TensorInfo *first = dir.find(a), *second = dir.find(b);
  if (!first || !second) return not_found("there is no tensor " + std::string(first ? b : a));
  if (first->size() != second->size()) return false;
  std::vector<std::byte> ours(std::min(kPieceBytes, first->size())), theirs(ours.size());
  for (uint64_t at = 0; at < first->size(); at += ours.size()) {
    const auto count = std::min<uint64_t>(ours.size(), first->size() - at);
    LATHE_TRY(dir.read(a, at, std::span(ours).first(count)));
    LATHE_TRY(dir.read(b, at, std::span(theirs).first(count)));
    if (std::memcmp(ours.data(), theirs.data(), count) != 0) return false;
  }
  return true;
}

bool widens(Dtype from, Dtype to) {
  if (from == to) return true;
  if (to == Dtype::kF32) return from == Dtype::kBF16 || from == Dtype::kF16;
  return to == Dtype::kF64 && is_floating(from);
}

bool can_convert(Dtype from, Dtype to) {
  return is_floating(from) && (to == Dtype::kBF16 || to == Dtype::kF32);
}

void convert(Dtype from, std::span<const std::byte> in, Dtype to, std::span<std::byte> out) {
  const auto size = static_cast<size_t>(dtype_size(from)), wide = static_cast<size_t>(dtype_size(to));
  LATHE_CHECK(can_convert(from, to) && in.size() / size * wide == out.size());
  for (size_t i = 0; i * size < in.size(); ++i) {
    const double value = number(from, in.data() + i * size);
    if (to == Dtype::kBF16) {
      const uint16_t rounded = nearest_bf16(value);
      std::memcpy(out.data() + i * wide, &rounded, sizeof rounded);
    } else {
      const auto rounded = static_cast<float>(value);
      std::memcpy(out.data() + i * wide, &rounded, sizeof rounded);
    }
  }
}

}  // namespace lathe::delta
