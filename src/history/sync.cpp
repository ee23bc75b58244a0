#include "history/sync.h"

#include <algorithm>
#include <chrono>

#include "history/lineage.h"

namespace lathe::history {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kWindow = 256;  // tiles compared before the changed ones among them are encoded, from a warm cache

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// A new version on its way: what it follows, where its weights are, and its number.
struct Step {
  io::Env& env;
  const History& history;
  const delta::WeightSource& source;
  int64_t version = 0;
  const SyncOptions& options;
};

// Returns the seconds spent on comparing.
Result<double> add_tiles(const Step& step, delta::DeltaWriter& writer, const delta::FileSource& shards) {
  const delta::WeightState& before = step.history.head().state;
  const delta::TileLoader load = [&](delta::TileId id, std::span<std::byte> scratch_before,
                                     std::span<std::byte> scratch_after) -> Result<delta::TileBytes> {
    return delta::TileBytes{.before = LATHE_TRY(shards.read(id, scratch_before)),
                            .after = LATHE_TRY(step.source.read(id, scratch_after))};
  };
  const ApplyOptions& options = step.options.apply;
  const uint64_t tiles = before.tiles();
  double comparing = 0;
  for (size_t at = 0; at < tiles;) {
    const auto begin = Clock::now();
    const std::vector<delta::TileId> changed =
        LATHE_TRY(changed_tiles(step.source, before, kWindow, options.threads, at));
    comparing += seconds_since(begin);
    LATHE_TRY(writer.add(changed, load));
    if (options.progress) options.progress("comparing", at * kTileBytes, tiles * kTileBytes);
  }
  return comparing;
}

struct Written {
  delta::DeltaReport delta;
  double compare_seconds = 0;
};

// The whole delta, durable under a name that recovery takes for litter.
Result<Written> write_delta(const Step& step, const std::string& path) {
  LATHE_TRY(io::remove_if_there(step.env, path));  // never goes on with a file whose sync may have failed
  const auto file = LATHE_TRY(step.env.create(path));
  const Applied& head = step.history.head();
  delta::DeltaWriter writer = LATHE_TRY(delta::DeltaWriter::create(*file, head.state,
                                                                   {.from_version = head.version,
                                                                    .to_version = step.version,
                                                                    .time_ms = now_ms(),
                                                                    .threads = step.options.apply.threads}));
  const delta::FileSource shards =
      LATHE_TRY(delta::FileSource::open(step.env, step.history.paths().directory, head.state));
  const double comparing = LATHE_TRY(add_tiles(step, writer, shards));
  const std::string record = to_json(step.options.record);
  LATHE_TRY(writer.attach(kRecordName, std::as_bytes(std::span(record))));
  for (const Attachment& attachment : step.options.attachments) {
    LATHE_TRY(writer.begin_attachment(attachment.name));
    LATHE_TRY(attachment.write([&](std::span<const std::byte> bytes) { return writer.append_attachment(bytes); }));
  }
  const delta::DeltaReport report = LATHE_TRY(writer.finish());
  LATHE_TRY(file->sync());
  LATHE_TRY(file->close());
  return Written{.delta = report, .compare_seconds = comparing};
}

// From temporary file to version. A failure before the rename leaves nothing behind.
Result<Written> make_durable(const Step& step) {
  const delta::Paths& paths = step.history.paths();
  const std::string path = paths.delta(step.history.head().version, step.version), temporary = path + delta::kNew;
  const auto prepared = [&]() -> Result<Written> {
    const Written written = LATHE_TRY(write_delta(step, temporary));
    const bool equal = written.delta.tiles_changed == 0 && !step.options.even_if_equal;
    const delta::DeltaReader delta = LATHE_TRY(delta::DeltaReader::open(step.env, temporary));
    LATHE_TRY(check_room(step.env, paths, delta, step.options.apply));
    if (!equal) {
      LATHE_TRY(step.env.rename(temporary, path));
    } else {
      LATHE_TRY(step.env.remove(temporary));
    }
    return written;
  }();
  if (!prepared.ok()) {
    // The failure is what is reported; what cannot be removed now is removed by recovery.
    [[maybe_unused]] const Status removed = io::remove_if_there(step.env, temporary);
    return prepared;
  }
  LATHE_TRY(step.env.sync_directory(paths.deltas));  // the durable point
  return prepared;
}

// The version asked for is not new. If it is the one the shards hold, all is done: an earlier call failed after its
// durable point, and recovery finished it.
Result<SyncReport> already_there(const Step& step) {
  const Applied& head = step.history.head();
  const SyncReport report{
      .version = head.version, .previous = head.version, .root = head.state.root(), .tiles = head.state.tiles()};
  size_t at = 0;
  const auto changed = LATHE_TRY(changed_tiles(step.source, head.state, report.tiles, step.options.apply.threads, at));
  if (step.version == head.version && changed.empty()) return report;
  return Error{Code::kConflict,
               step.history.paths().directory + " holds version " + std::to_string(head.version) + " already"};
}

// What was made durable, or found to be there already. The sources hold the shards open, and with them the room that
// replaced files take: they must be gone before the shards are brought up to date.
struct Made {
  SyncReport report;
  std::optional<delta::DeltaReader> delta;  // nothing: no version was made
};

Result<Made> make_version(const Step& step) {
  const auto begin = Clock::now();
  const delta::Paths& paths = step.history.paths();
  const int64_t previous = step.history.head().version;
  if (step.version <= previous) return Made{.report = LATHE_TRY(already_there(step))};
  LATHE_TRY(io::create_directory_durably(step.env, paths.lathe));
  LATHE_TRY(io::create_directory_durably(step.env, paths.deltas));
  const auto [written, comparing] = LATHE_TRY(make_durable(step));
  Made made{.report = {.version = previous,
                       .previous = previous,
                       .restores = step.options.record.restores,
                       .root = written.info.to_root,
                       .tiles_changed = written.tiles_changed,
                       .tiles = step.history.head().state.tiles(),
                       .durable_seconds = seconds_since(begin),
                       .compare_seconds = comparing}};
  if (written.tiles_changed > 0 || step.options.even_if_equal) {
    made.report.version = step.version;
    made.report.delta_bytes = written.file_bytes;
    made.delta = LATHE_TRY(delta::DeltaReader::open(step.env, paths.delta(previous, step.version)));
  }
  return made;
}

Result<SyncReport> bring_up(io::Env& env, const History& history, Made made, const SyncOptions& options) {
  SyncReport& report = made.report;
  if (!made.delta) return report;
  const auto begin = Clock::now();
  Applied applied = history.head();
  ApplyReport shards;
  LATHE_TRY(apply(env, history.paths(), *made.delta, applied, options.apply, shards)
                .at("version " + std::to_string(report.version) +
                    " is durable, but the shards could not be brought up to it; the next lathe command does it"));
  report.bytes_written = shards.bytes_written;
  report.shards_rewritten = shards.shards_rewritten;
  report.shards_in_place = shards.shards_in_place;
  report.seconds = report.durable_seconds + seconds_since(begin);
  return report;
}

}  // namespace

Result<SyncReport> sync(io::Env& env, const std::string& directory, const delta::TensorReader& tensors,
                        std::optional<int64_t> version, const SyncOptions& options) {
  const auto lock = LATHE_TRY(delta::lock_history(env, directory));
  LATHE_TRY(options.materialize ? materialize(env, delta::Paths(directory))
                                : refuse_links(env, delta::Paths(directory)));
  const History history = LATHE_TRY(History::open(env, directory, options.apply));
  auto made = [&]() -> Result<Made> {
    const delta::TensorSource source =
        LATHE_TRY(delta::TensorSource::open(env, directory, history.head().state, tensors));
    return make_version({env, history, source, version.value_or(history.head().version + 1), options});
  }();
  if (!made.ok()) return made.error();
  return bring_up(env, history, std::move(made).value(), options);
}

namespace {

// What rollback and redo share. `choose` says whose weights to restore.
template <class Choose>
Result<SyncReport> restore(io::Env& env, const std::string& directory, std::optional<int64_t> version,
                           SyncOptions restoring, const char* kind, Choose choose) {
  const auto lock = LATHE_TRY(delta::lock_history(env, directory));
  LATHE_TRY(restoring.materialize ? materialize(env, delta::Paths(directory))
                                  : refuse_links(env, delta::Paths(directory)));
  const History history = LATHE_TRY(History::open(env, directory, restoring.apply));
  const int64_t wanted = LATHE_TRY(choose(history));
  restoring.even_if_equal = true;
  restoring.record.kind = kind;
  restoring.record.restores = wanted;
  restoring.attachments.clear();
  if (const DeltaFile* delta = history.leading_to(wanted)) {
    const delta::DeltaReader* reader = LATHE_TRY(history.reader(*delta));
    if (const delta::DeltaAttachment* state = reader->find_attachment(kOptimizerName)) {
      restoring.attachments.push_back({.name = kOptimizerName, .write = [reader, state](const Attachment::Sink& sink) {
                                         return reader->read_attachment(*state, sink);
                                       }});
    }
  }
  auto made = [&]() -> Result<Made> {
    const VersionSource source = LATHE_TRY(history.at(wanted));
    return make_version({env, history, source, version.value_or(history.head().version + 1), restoring});
  }();
  if (!made.ok()) return made.error();
  return bring_up(env, history, std::move(made).value(), restoring);
}

}  // namespace

Result<SyncReport> rollback(io::Env& env, const std::string& directory, std::optional<int64_t> target,
                            std::optional<int64_t> version, const SyncOptions& options) {
  return restore(env, directory, version, options, "rollback", [&](const History& history) -> Result<int64_t> {
    if (target) return *target;
    const Lineage lineage = LATHE_TRY(read_lineage(history));
    if (lineage.undo) return *lineage.undo;
    return not_found(directory + " has the weights of version " + std::to_string(lineage.weights_of) +
                     ", and there is none before it to go back to");
  });
}

Result<SyncReport> redo(io::Env& env, const std::string& directory, std::optional<int64_t> version,
                        const SyncOptions& options) {
  return restore(env, directory, version, options, "redo", [&](const History& history) -> Result<int64_t> {
    const Lineage lineage = LATHE_TRY(read_lineage(history));
    if (lineage.redo) return *lineage.redo;
    return not_found("there is nothing to redo: the last change of " + directory + " is not a rollback");
  });
}

}  // namespace lathe::history
