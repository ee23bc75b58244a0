// Prune: keeps the history small by merging deltas: every version of the last hours, then one an hour, one a day, one a
// week. The weights of a version that is kept stay exactly what they were.
//
// Why merging pays: ten minutes' changes, summed over a day, are many times the day's net change.
// Threads: under lock_history(); it starts its own.
// Memory: about 12 MiB per thread.
// Durability: the merged delta is durable, and has been read back, before the first of its parts is removed; what a crash
// leaves in between, recover() finishes.
// Format page: docs/formats/directory.md
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "base/result.h"
#include "history/history.h"

namespace lathe::history {

struct Retention {
  int64_t all_hours = 3;      // every version that is younger
  int64_t hourly_hours = 48;  // then the last of each hour
  int64_t daily_days = 30;    // then the last of each day; beyond, of each week (from Monday, UTC)
};

struct PruneReport {
  std::vector<int64_t> removed;  // versions
  int64_t kept = 0;
  uint64_t bytes_before = 0, bytes_after = 0;  // of all deltas
};

// The versions to keep, of those with their times in milliseconds since 1970, ascending. The first and the last always.
std::set<int64_t> retained(const std::vector<std::pair<int64_t, int64_t>>& versions, const Retention& retention,
                           int64_t now_ms);

// Versions that a copy elsewhere was last seen at (push.h) are kept too. With `dry_run` nothing is changed.
Result<PruneReport> prune(io::Env& env, const std::string& directory, const Retention& retention, int64_t now_ms,
                          bool dry_run, const ApplyOptions& options = {});

}  // namespace lathe::history
