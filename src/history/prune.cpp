#include "history/prune.h"

#include <algorithm>
#include <cerrno>
#include <map>

#include "history/push.h"

namespace lathe::history {
namespace {

constexpr int64_t kHour = 3'600'000;  // milliseconds
constexpr int64_t kDay = 24 * kHour;
constexpr int64_t kThursday = 3 * kDay;  // 1 January 1970 was one: weeks begin on Mondays

// A number that the versions which may be replaced by the last of them share.
std::pair<int, int64_t> bucket(int64_t version, int64_t time, const Retention& retention, int64_t now) {
  const int64_t age = now - time;
  if (age < retention.all_hours * kHour) return {0, version};
  if (age < retention.hourly_hours * kHour) return {1, time / kHour};
  if (age < retention.daily_days * kDay) return {2, time / kDay};
  return {3, (time + kThursday) / (7 * kDay)};
}

Result<std::vector<std::pair<int64_t, int64_t>>> times(const History& history) {
  std::vector<std::pair<int64_t, int64_t>> versions;
  if (history.deltas().empty()) versions.emplace_back(history.head().version, 0);
  if (!history.deltas().empty()) versions.emplace_back(history.deltas().front().from, 0);
  for (const DeltaFile& delta : history.deltas()) {
    versions.emplace_back(delta.to, LATHE_TRY(history.reader(delta))->info().time_ms);
  }
  return versions;
}

Result<uint64_t> total_bytes(const History& history) {
  uint64_t bytes = 0;
  for (const DeltaFile& delta : history.deltas()) bytes += LATHE_TRY(history.reader(delta))->file_bytes();
  return bytes;
}

// Runs of deltas that lead from one kept version to the next.
std::vector<std::vector<DeltaFile>> runs(const History& history, const std::set<int64_t>& keep) {
  std::vector<std::vector<DeltaFile>> out;
  for (const DeltaFile& delta : history.deltas()) {
    if (out.empty() || keep.contains(delta.from)) out.emplace_back();
    out.back().push_back(delta);
  }
  return out;
}

Status write_merged(io::Env& env, const History& history, const std::vector<DeltaFile>& parts, const std::string& path,
                    const ApplyOptions& options) {
  const VersionSource before = LATHE_TRY(history.at(parts.front().from));
  const VersionSource after = LATHE_TRY(history.at(parts.back().to));
  const delta::DeltaReader* last = LATHE_TRY(history.reader(parts.back()));
  std::set<delta::TileId> tiles;
  for (const DeltaFile& part : parts) {
    for (const delta::DeltaTile& tile : LATHE_TRY(history.reader(part))->tiles()) tiles.insert(tile.id);
  }
  std::vector<delta::TileId> changed;
  for (const delta::TileId& id : tiles) {
    // Changed and changed back is not changed.
    if (before.state().files[id.file].tiles[id.tile] != after.state().files[id.file].tiles[id.tile])
      changed.push_back(id);
  }
  LATHE_TRY(io::remove_if_there(env, path));
  const auto file = LATHE_TRY(env.create(path));
  delta::DeltaWriter writer = LATHE_TRY(delta::DeltaWriter::create(*file, before.state(),
                                                                   {.from_version = parts.front().from,
                                                                    .to_version = parts.back().to,
                                                                    .time_ms = last->info().time_ms,
                                                                    .threads = options.threads}));
  const Status added = writer.add(
      changed, [&](delta::TileId id, std::span<std::byte> a, std::span<std::byte> b) -> Result<delta::TileBytes> {
        return delta::TileBytes{.before = LATHE_TRY(before.read(id, a)), .after = LATHE_TRY(after.read(id, b))};
      });
  LATHE_TRY(added);
  for (const delta::DeltaAttachment& attachment : last->attachments()) {
    LATHE_TRY(writer.begin_attachment(attachment.name));
    const Status copied = last->read_attachment(
        attachment, [&](std::span<const std::byte> bytes) { return writer.append_attachment(bytes); });
    LATHE_TRY(copied);
  }
  const delta::DeltaReport report = LATHE_TRY(writer.finish());
  if (report.info.to_root != last->info().to_root)
    return internal("a merged delta ends with a different state from its parts");
  LATHE_TRY(file->sync());
  return file->close();
}

// The merged delta takes its place; then its parts go, as recovery would have them go.
Status merge(io::Env& env, const History& history, const std::vector<DeltaFile>& parts, const ApplyOptions& options) {
  const delta::Paths& paths = history.paths();
  const std::string path = paths.delta(parts.front().from, parts.back().to), temporary = path + delta::kNew;
  uint64_t bytes = kSpareBytes;
  for (const DeltaFile& part : parts) bytes += LATHE_TRY(history.reader(part))->file_bytes();
  if (const uint64_t free = LATHE_TRY(env.free_space(paths.deltas)); free < bytes) {
    return Error{Code::kIo,
                 "the disk of " + paths.deltas + " has " + std::to_string(free >> 20) + " MiB free; merging needs " +
                     std::to_string(bytes >> 20) + " MiB before it frees any",
                 ENOSPC};
  }
  Status written = write_merged(env, history, parts, temporary, options);
  if (written.ok()) written = env.rename(temporary, path);
  if (!written.ok()) {
    // The failure is what is reported; what cannot be removed now is removed by recovery.
    [[maybe_unused]] const Status removed = io::remove_if_there(env, temporary);
    return written;
  }
  LATHE_TRY(env.sync_directory(paths.deltas));
  LATHE_TRY(recover(env, paths.directory, options));
  return {};
}

}  // namespace

std::set<int64_t> retained(const std::vector<std::pair<int64_t, int64_t>>& versions, const Retention& retention,
                           int64_t now_ms) {
  std::set<int64_t> keep;
  if (versions.empty()) return keep;
  std::map<std::pair<int, int64_t>, int64_t> last;
  for (const auto& [version, time] : versions) last[bucket(version, time, retention, now_ms)] = version;
  for (const auto& [key, version] : last) keep.insert(version);
  keep.insert(versions.front().first);
  keep.insert(versions.back().first);
  return keep;
}

Result<PruneReport> prune(io::Env& env, const std::string& directory, const Retention& retention, int64_t now_ms,
                          bool dry_run, const ApplyOptions& options) {
  LATHE_TRY(delta::check_model_directory(env, directory));
  const delta::Paths paths(directory);
  if (!LATHE_TRY(env.exists(paths.state)) && !LATHE_TRY(env.exists(paths.deltas))) return PruneReport{};
  const auto lock = LATHE_TRY(delta::lock_history(env, directory));
  History history = LATHE_TRY(History::open(env, directory, options));
  std::set<int64_t> keep = retained(LATHE_TRY(times(history)), retention, now_ms);
  const auto pushed = LATHE_TRY(pushed_versions(env, history.paths()));
  for (const auto& [destination, version] : pushed) keep.insert(version);
  PruneReport report{.bytes_before = LATHE_TRY(total_bytes(history))};
  for (const int64_t version : history.versions()) {
    if (!keep.contains(version)) report.removed.push_back(version);
  }
  report.kept = static_cast<int64_t>(history.versions().size() - report.removed.size());
  report.bytes_after = report.bytes_before;
  if (dry_run) return report;
  const auto todo = runs(history, keep);
  for (size_t i = 0; i < todo.size(); ++i) {
    if (todo[i].size() > 1) {
      LATHE_TRY(merge(env, history, todo[i], options));
      history = LATHE_TRY(History::open(env, directory, options));  // its readers are of files that are gone
    }
    if (options.progress) options.progress("merging", i + 1, todo.size());
  }
  report.bytes_after = LATHE_TRY(total_bytes(history));
  return report;
}

}  // namespace lathe::history
