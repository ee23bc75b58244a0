// Journal: the blocks that are about to be written into a shard in place.
//
// Why: a crash may leave a tile half old and half new, and a delta, being relative, cannot be applied to such a tile.
// The journal holds the blocks' new bytes, and is durable before the first of them is written.
// Memory: the blocks of a few tiles.
// Durability: write_journal() is all or nothing, and durable on return.
// Format page: docs/formats/journal.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "delta/paths.h"

namespace lathe::history {

struct Journal {
  struct Block {
    uint64_t offset = 0;  // in the shard
    std::vector<std::byte> bytes;
  };
  int64_t from_version = 0, to_version = 0;
  std::string file;
  std::vector<Block> blocks;  // ascending

  // Copies the blocks over `bytes`, which are the shard's bytes from `offset` on.
  void lay_over(uint64_t offset, std::span<std::byte> bytes) const;
};

Status write_journal(io::Env& env, const delta::Paths& paths, const Journal& journal);
// Nothing if there is none.
Result<std::optional<Journal>> read_journal(io::Env& env, const delta::Paths& paths);

}  // namespace lathe::history
