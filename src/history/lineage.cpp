#include "history/lineage.h"

#include <map>
#include <set>

namespace lathe::history {

Lineage lineage_of(int64_t first, const std::vector<LineageEntry>& entries) {
  std::map<int64_t, std::optional<int64_t>> made_from{{first, std::nullopt}};
  std::map<int64_t, std::string> lessons;
  std::vector<int64_t> undone;
  int64_t current = first;
  for (const auto& [version, record] : entries) {
    if (!record.restores) {
      const auto lesson = lessons.find(current);
      const bool goes_on = !record.lesson.empty() && lesson != lessons.end() && lesson->second == record.lesson;
      made_from[version] = goes_on ? made_from[current] : current;
      lessons[version] = record.lesson;
      undone.clear();
      current = version;
      continue;
    }
    if (record.kind == "redo") {
      if (!undone.empty()) undone.pop_back();
    } else {
      undone.push_back(current);
    }
    if (made_from.contains(*record.restores)) {
      current = *record.restores;
      continue;
    }
    // The version it restored was pruned. Its weights live on as this one; what they were made from is the nearest
    // older version that is left.
    const auto older = made_from.lower_bound(*record.restores);
    made_from[version] = older == made_from.begin() ? std::nullopt : std::optional(std::prev(older)->first);
    current = version;
  }
  return {.weights_of = current,
          .undo = made_from[current],
          .redo = undone.empty() ? std::nullopt : std::optional(undone.back())};
}

Result<Lineage> read_lineage(const History& history) {
  if (history.deltas().empty()) return Lineage{.weights_of = history.head().version};
  std::vector<LineageEntry> entries;
  for (const DeltaFile& delta : history.deltas()) {
    const delta::DeltaReader* reader = LATHE_TRY(history.reader(delta));
    LineageEntry entry{.version = delta.to};
    if (const auto* attachment = reader->find_attachment(kRecordName))
      entry.record = parse_record(LATHE_TRY(reader->attachment_text(*attachment)));
    entries.push_back(std::move(entry));
  }
  return lineage_of(history.deltas().front().from, entries);
}

}  // namespace lathe::history
