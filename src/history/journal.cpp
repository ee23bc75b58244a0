#include "history/journal.h"

#include <algorithm>
#include <cstring>

#include "base/hash.h"
#include "codec/bytes.h"

namespace lathe::history {
namespace {

constexpr std::string_view kMagic = "LATHEjnl";
constexpr uint32_t kFormat = 1;

Result<Journal> parse(std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof(uint64_t)) return corruption("it is too short");
  auto left = bytes.first(bytes.size() - sizeof(uint64_t));
  auto checksum = bytes.last(sizeof(uint64_t));
  if (checksum64(left) != LATHE_TRY(codec::take<uint64_t>(checksum))) return corruption("its checksum is wrong");
  const auto magic = LATHE_TRY(codec::take_bytes(left, kMagic.size()));
  if (std::memcmp(magic.data(), kMagic.data(), kMagic.size()) != 0) return corruption("it is not a journal");
  if (LATHE_TRY(codec::take<uint32_t>(left)) != kFormat) return unsupported("it is of another version of lathe");
  Journal journal;
  journal.file = LATHE_TRY(codec::take_text(left));
  journal.from_version = LATHE_TRY(codec::take<int64_t>(left));
  journal.to_version = LATHE_TRY(codec::take<int64_t>(left));
  for (auto count = LATHE_TRY(codec::take<uint64_t>(left)); count > 0; --count) {
    Journal::Block block{.offset = LATHE_TRY(codec::take<uint64_t>(left))};
    const auto size = LATHE_TRY(codec::take<uint64_t>(left));
    const auto contents = LATHE_TRY(codec::take_bytes(left, size));
    block.bytes.assign(contents.begin(), contents.end());
    journal.blocks.push_back(std::move(block));
  }
  if (!left.empty()) return corruption("bytes follow its last block");
  return journal;
}

}  // namespace

void Journal::lay_over(uint64_t offset, std::span<std::byte> bytes) const {
  for (const Block& block : blocks) {
    const uint64_t begin = std::max(offset, block.offset);
    const uint64_t end = std::min(offset + bytes.size(), block.offset + block.bytes.size());
    if (begin < end)
      std::memcpy(bytes.data() + (begin - offset), block.bytes.data() + (begin - block.offset), end - begin);
  }
}

Status write_journal(io::Env& env, const delta::Paths& paths, const Journal& journal) {
  std::vector<std::byte> out;
  codec::append_bytes(out, std::as_bytes(std::span(kMagic)));
  codec::append(out, kFormat);
  codec::append_text(out, journal.file);
  codec::append(out, journal.from_version);
  codec::append(out, journal.to_version);
  codec::append(out, static_cast<uint64_t>(journal.blocks.size()));
  for (const Journal::Block& block : journal.blocks) {
    codec::append(out, block.offset);
    codec::append(out, static_cast<uint64_t>(block.bytes.size()));
    codec::append_bytes(out, block.bytes);
  }
  codec::append(out, checksum64(out));
  return io::write_text_atomically(env, paths.journal, {reinterpret_cast<const char*>(out.data()), out.size()});
}

Result<std::optional<Journal>> read_journal(io::Env& env, const delta::Paths& paths) {
  if (!LATHE_TRY(env.exists(paths.journal))) return std::optional<Journal>();
  const std::string text = LATHE_TRY(io::read_text(env, paths.journal));
  return std::optional<Journal>(LATHE_TRY(parse(std::as_bytes(std::span(text))).at(paths.journal)));
}

}  // namespace lathe::history
