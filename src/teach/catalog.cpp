#include "teach/catalog.h"

#include <algorithm>

#include "delta/delta_reader.h"
#include "delta/paths.h"
#include "history/history.h"

namespace lathe::teach {
namespace {

void add_steps(CatalogEntry& entry, const std::vector<store::Version>& steps) {
  for (const store::Version& step : steps) {
    if (step.job_id.empty()) {
      if (entry.kind.empty()) entry.kind = step.kind;
      entry.created_at = step.created_at;
      continue;
    }
    if (entry.steps++ == 0) {
      entry.first = step.version;
      entry.loss = step.loss;
    }
    if (std::find(entry.jobs.begin(), entry.jobs.end(), step.job_id) == entry.jobs.end())
      entry.jobs.push_back(step.job_id);
    entry.created_at = step.created_at;
    entry.learning_rate = step.learning_rate;
    entry.changed_fraction = step.changed_fraction;
  }
  if (entry.kind.empty()) entry.kind = "learn";
}

Result<CatalogEntry> pending_entry(store::Store& store, int64_t live) {
  CatalogEntry entry{.version = live, .first = live, .durable = false};
  std::vector<store::Version> pending = LATHE_TRY(store.pending_versions());
  std::erase_if(pending, [&](const store::Version& v) { return v.version > live; });  // announced, not committed
  add_steps(entry, pending);
  return entry;
}

Result<CatalogEntry> durable_entry(io::Env& env, const delta::Paths& paths, const history::DeltaFile& delta,
                                   store::Store& store) {
  CatalogEntry entry{.version = delta.to, .first = delta.to};
  // Pruning, by another process, may take a delta away between the listing and this.
  if (const auto reader = delta::DeltaReader::open(env, paths.delta(delta.from, delta.to)); reader.ok()) {
    entry.created_at = static_cast<double>(reader->info().time_ms) / 1e3;
    if (const auto* attachment = reader->find_attachment(history::kRecordName)) {
      const std::string text = LATHE_TRY(reader->attachment_text(*attachment));
      const history::VersionRecord record = history::parse_record(text);
      entry.kind = record.kind, entry.note = record.note, entry.restores = record.restores;
    }
  }
  const std::vector<store::Version> steps = LATHE_TRY(store.versions_in(delta.from, delta.to));
  add_steps(entry, steps);
  return entry;
}

}  // namespace

Result<CatalogPage> list_versions(io::Env& env, const std::string& directory, store::Store& store, int64_t live,
                                  int64_t limit, std::optional<int64_t> before) {
  const delta::Paths paths(directory);
  const history::Chain chain = LATHE_TRY(history::read_chain(env, paths));
  CatalogPage page;
  // False: the page is full.
  const auto wanted = [&](int64_t version) { return !before || version < *before; };
  const auto full = [&] { return page.more = std::ssize(page.entries) >= limit; };
  const int64_t head = chain.deltas.empty() ? 0 : chain.deltas.back().to;
  if (live > head && (!chain.deltas.empty() || live > 0) && wanted(live)) {
    CatalogEntry pending = LATHE_TRY(pending_entry(store, live));
    if (!chain.deltas.empty() || pending.steps > 0 || pending.kind != "learn")
      page.entries.push_back(std::move(pending));
  }
  for (auto delta = chain.deltas.rbegin(); delta != chain.deltas.rend(); ++delta) {
    if (!wanted(delta->to)) continue;
    if (full()) return page;
    page.entries.push_back(LATHE_TRY(durable_entry(env, paths, *delta, store)));
  }
  const int64_t base = chain.deltas.empty() ? 0 : chain.deltas.front().from;
  if (!wanted(base)) return page;
  if (full()) return page;
  page.entries.push_back({.version = base, .first = base, .kind = "base"});
  return page;
}

}  // namespace lathe::teach
