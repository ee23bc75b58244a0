#include "teach/checkpointer.h"

#include <algorithm>
#include <set>

#include "base/log.h"
#include "delta/model_dir.h"
#include "gpu/device.h"
#include "train/guarded.h"
#include "weights/live_tensors.h"

namespace lathe::teach {
namespace {

Synced synced_of(const history::SyncReport& report) {
  return {.version = report.version,
          .delta_bytes = report.delta_bytes,
          .bytes_written = report.bytes_written,
          .shards_written = report.shards_rewritten + report.shards_in_place,
          .durable_seconds = report.durable_seconds,
          .seconds = report.seconds};
}

// What `lathe log` shows of versions that become durable together.
history::VersionRecord record_of(const std::vector<store::Version>& pending) {
  std::set<std::string> jobs;
  int64_t steps = 0;
  bool others = false;
  for (const store::Version& version : pending) {
    others |= version.job_id.empty();
    if (version.job_id.empty()) continue;
    jobs.insert(version.job_id);
    ++steps;
  }
  history::VersionRecord record{.kind = "learn"};
  record.note = std::to_string(jobs.size()) + (jobs.size() == 1 ? " correction, " : " corrections, ") +
                std::to_string(steps) + (steps == 1 ? " step" : " steps");
  if (jobs.size() == 1 && !others) record.lesson = *jobs.begin();
  return record;
}

}  // namespace

Result<std::vector<int64_t>> Checkpointer::on_disk() const {
  const delta::Paths paths(options_.directory);
  const history::Chain chain = LATHE_TRY(history::read_chain(env_, paths));
  std::vector<int64_t> versions;
  for (const history::DeltaFile& delta : chain.deltas) versions.push_back(delta.from);
  versions.push_back(chain.deltas.empty() ? versions_.durable() : chain.deltas.back().to);
  return versions;
}

Status Checkpointer::note_durable() {
  const std::vector<int64_t> there = LATHE_TRY(on_disk());
  return store_.mark_durable(there);
}

Result<store::Lost> Checkpointer::settle() {
  const std::vector<int64_t> there = LATHE_TRY(on_disk());
  store::Lost lost = LATHE_TRY(store_.mark_lost(there));
  if (!lost.versions.empty()) events_.tell(Lost{lost});
  return lost;
}

void Checkpointer::lose() {
  const auto lost = settle();
  if (!lost.ok()) log::error("what was lost cannot be looked up in the store: " + lost.error().message);
}

Result<Moved> Checkpointer::sync() {
  LATHE_TRY(repair());
  if (!versions_.pending()) {
    if (latest_.version != versions_.live()) latest_ = {.version = versions_.live()};
    return Moved{.version = latest_};
  }
  const std::vector<store::Version> pending = LATHE_TRY(store_.pending_versions());
  const history::SyncOptions options{
      .record = record_of(pending), .materialize = options_.materialize, .even_if_equal = true};
  const history::SyncReport report =
      LATHE_TRY(history::sync(env_, options_.directory, weights::LiveTensors(weights_), versions_.live(), options));
  versions_.synced();
  const Status told = holder_.durable();
  if (!told.ok()) log::warning("the weights' server was not told of the sync: " + told.error().message);
  LATHE_TRY(note_durable());
  const Moved moved{.version = latest_ = synced_of(report)};
  events_.tell(moved.version);
  return moved;
}

// The directory's part of a restore. After an error versions_ says whether it moved.
Result<history::SyncReport> Checkpointer::move_directory(Command::Kind kind, std::optional<int64_t> target) {
  const bool redo = kind == Command::Kind::kRedo;
  const int64_t number = versions_.begin_restore();
  const Status announced = store_.add_version({.version = number, .kind = redo ? "redo" : "rollback"});
  if (!announced.ok()) {
    versions_.unchanged();
    return announced.error();
  }
  const history::SyncOptions options{.materialize = options_.materialize};
  auto report = redo ? history::redo(env_, options_.directory, number, options)
                     : history::rollback(env_, options_.directory, target, number, options);
  if (report.ok()) {
    versions_.moved();
    return report;
  }
  // It may have failed after its durable point.
  const auto versions = on_disk();
  if (versions.ok() && versions->back() < number) {
    versions_.unchanged();
    [[maybe_unused]] const Status removed = store_.remove_version(number);
  } else {
    versions_.moved();
  }
  return report;
}

// The live weights become the directory's. After an error versions_ is behind, if they are as before, or torn.
Status Checkpointer::follow() {
  const delta::ModelDir dir = LATHE_TRY(delta::ModelDir::open(env_, options_.directory));
  // Nothing is changed by what cannot be read.
  LATHE_TRY(train::guarded("reading the directory", [&] { return weights_.check_reload(dir); }));
  LATHE_TRY(holder_.begin());
  Status reloaded = train::guarded("reading the weights", [&] {
    const gpu::Fence finished(weights_.parameters().front().data.device());
    return weights_.reload(dir);
  });
  if (reloaded.ok()) reloaded = holder_.end(versions_.durable());
  if (!reloaded.ok()) {
    const Status abandoned = train::guarded("reading the weights", [&] { return holder_.abandon(); });
    if (!abandoned.ok()) {
      versions_.tore();
      return reloaded;
    }
    log::warning("the weights were read a second time: " + reloaded.error().message);
  }
  versions_.followed();
  return {};
}

Error Checkpointer::keep(const Error& why) {
  const int64_t directory = versions_.durable(), kept = versions_.kept();
  const Status added = store_.add_version({.version = kept, .kind = "adopt"});
  if (!added.ok())
    log::error("the store has no record of version " + std::to_string(kept) + ": " + added.error().message);
  return why.at("the directory was rolled back as version " + std::to_string(directory) +
                ", but the served weights stay what they were, as version " + std::to_string(kept) +
                ": roll back again, or sync to make the directory follow them");
}

Result<Moved> Checkpointer::restore(Command::Kind kind, std::optional<int64_t> target) {
  LATHE_TRY(sync());
  const auto report = move_directory(kind, target);
  if (!report.ok()) {
    if (versions_.pending()) return keep(report.error());
    return report.error();
  }
  LATHE_TRY(note_durable());
  const Status followed = follow();
  if (!followed.ok()) {
    if (versions_.torn())
      return followed.error().at("the served weights are of no version; roll back again to repair them");
    return keep(followed.error());
  }
  const Status told = holder_.durable();
  if (!told.ok()) log::warning("the weights' server was not told of the rollback: " + told.error().message);
  const Moved moved{.version = synced_of(*report), .restores = report->restores};
  events_.tell(RolledBack{
      .version = moved.version, .restores = report->restores.value_or(0), .redo = kind == Command::Kind::kRedo});
  return moved;
}

void Checkpointer::take_back(bool whole) {
  const Status abandoned = train::guarded("taking a change back", [&] { return holder_.abandon(); });
  if (abandoned.ok()) {
    versions_.taken_back();
    lose();
    return;
  }
  log::error("a change of the weights could not be taken back: " + abandoned.error().message);
  if (whole) {
    versions_.committed();
  } else {
    versions_.tore();
    lose();
  }
}

Status Checkpointer::repair() {
  if (!versions_.torn()) return {};
  const std::string what = "a change of the weights ended half-way, and reading them from the directory again failed";
  LATHE_TRY(holder_.begin().at(what));
  LATHE_TRY(train::guarded("reading the weights", [&] { return holder_.abandon(); }).at(what));
  versions_.repaired();
  return {};
}

}  // namespace lathe::teach
