// Lineage: which version's weights a directory has, and where undo and redo lead.
//
// A rollback is a version of its own, so that it is as durable as any; but it has an older one's weights. An undo goes
// from those weights to what they were made from, and so does the next: never back to what was undone. A redo takes the
// latest undo back, until something new is learned.
// A lesson that became durable in several pieces (one record names it in each) is undone as one.
// Threads: pure but for reading deltas; as History.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/result.h"
#include "history/history.h"

namespace lathe::history {

struct Lineage {
  int64_t weights_of = 0;       // the version that first had the head's weights
  std::optional<int64_t> undo;  // what they were made from; nothing: they are the first there are
  std::optional<int64_t> redo;  // whose weights the latest undo left; nothing: nothing was undone since
};

// A version and its record, oldest first; `first` is what the first of them was made from.
struct LineageEntry {
  int64_t version = 0;
  VersionRecord record;
};
Lineage lineage_of(int64_t first, const std::vector<LineageEntry>& entries);

// Errors name the delta that cannot be read.
Result<Lineage> read_lineage(const History& history);

}  // namespace lathe::history
