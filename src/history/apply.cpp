#include "history/apply.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "base/parallel.h"
#include "base/units.h"
#include "history/journal.h"

namespace lathe::history {
namespace {

constexpr size_t kTilesPerThread = 2;   // in memory at once
constexpr size_t kTilesPerJournal = 4;  // two journals fit into kSpareBytes

// One shard and what is to be done with it.
struct Task {
  uint32_t file = 0;
  std::vector<const delta::DeltaTile*> tiles;  // changed, ascending
  bool rewrite = false;
  bool never_in_place = false;
};

Result<std::vector<Task>> plan(io::Env& env, const delta::Paths& paths, const delta::DeltaReader& delta,
                               const ApplyOptions& options) {
  std::vector<Task> tasks;
  for (const delta::DeltaTile& tile : delta.tiles()) {
    if (tasks.empty() || tasks.back().file != tile.id.file) tasks.push_back({.file = tile.id.file});
    tasks.back().tiles.push_back(&tile);
  }
  for (Task& task : tasks) {
    const delta::FileLayout& layout = delta.files()[task.file];
    const io::FileStat stat = LATHE_TRY(env.stat(paths.shard(layout.name)));
    if (stat.is_symlink) {
      return unsupported(paths.shard(layout.name) +
                         " is a symbolic link, as in a Hugging Face cache; add --materialize to replace the links by "
                         "copies, or copy the model to a directory of its own first (cp -rL)");
    }
    uint64_t changed = 0;
    for (const delta::DeltaTile* tile : task.tiles) changed += tile_range(layout, tile->id.tile).size;
    task.never_in_place = stat.links > 1;
    task.rewrite = static_cast<double>(changed) > options.rewrite_above * static_cast<double>(layout.size);
  }
  return tasks;
}

// Bytes of the shards that are rewritten.
uint64_t rewritten_bytes(const std::vector<Task>& tasks, const delta::DeltaReader& delta) {
  uint64_t bytes = 0;
  for (const Task& task : tasks) bytes += task.rewrite || task.never_in_place ? delta.files()[task.file].size : 0;
  return bytes;
}

Status enough(io::Env& env, const delta::Paths& paths, uint64_t needed) {
  const uint64_t free = LATHE_TRY(env.free_space(paths.directory));
  if (free >= needed) return {};
  return Error{Code::kIo,
               "the disk of " + paths.directory + " has " + mebibytes(free) +
                   " free; bringing the shards up to date needs " + mebibytes(needed) + " next to the old files",
               ENOSPC};
}

class Applier {
 public:
  Applier(io::Env& env, const delta::Paths& paths, const delta::DeltaReader& delta, const delta::WeightState& state,
          const ApplyOptions& options, ApplyReport& report)
      : env_(env), paths_(paths), delta_(delta), state_(state), options_(options), report_(report) {}

  // Rewrites those of `tasks` that are to be, all before the first is renamed: if the disk is full after all, nothing
  // has changed, and readers see a mixture of old and new shards only while names change.
  Status rewrite(const std::vector<Task>& tasks, const std::optional<Journal>& journal);
  Status write_in_place(const std::vector<Task>& tasks);

 private:
  const delta::FileLayout& layout(const Task& task) const { return delta_.files()[task.file]; }
  // The tile's new bytes, in one of the two buffers. `known` is what the shard holds, journal laid over.
  Result<std::span<const std::byte>> updated(const delta::DeltaTile& tile, std::span<const std::byte> known,
                                             std::span<std::byte> out) const;
  Status write_new(const Task& task, const delta::FileSource& shards, const Journal* overlay);
  Status write_blocks(const Task& task, std::span<const delta::DeltaTile* const> tiles, const delta::FileSource& shards,
                      io::InPlaceFile& file);
  void advance(uint64_t bytes) {
    done_ += bytes;
    report_.bytes_written += bytes;
    if (options_.progress) options_.progress("applying", done_, total_);
  }

  io::Env& env_;
  const delta::Paths& paths_;
  const delta::DeltaReader& delta_;
  const delta::WeightState& state_;  // before
  const ApplyOptions& options_;
  ApplyReport& report_;
  uint64_t done_ = 0, total_ = 0;
};

Result<std::span<const std::byte>> Applier::updated(const delta::DeltaTile& tile, std::span<const std::byte> known,
                                                    std::span<std::byte> out) const {
  const Hash128 hash = hash_tile(known);
  if (hash == tile.after) return known;
  if (hash != tile.before) {
    return corruption(paths_.directory + "/" + state_.describe(tile.id) + " is neither of version " +
                      std::to_string(delta_.info().from_version) + " nor of version " +
                      std::to_string(delta_.info().to_version) +
                      ": it was damaged, or changed by another program; restore the file from a copy");
  }
  const auto result = out.first(known.size());
  LATHE_TRY(delta_.decode_known(tile, codec::Direction::kForward, known, result));
  return std::span<const std::byte>(result);
}

Status Applier::write_new(const Task& task, const delta::FileSource& shards, const Journal* overlay) {
  const delta::FileLayout& file = layout(task);
  const std::string path = paths_.shard(file.name) + delta::kNew;
  LATHE_TRY(io::remove_if_there(env_, path));  // never goes on with a file whose sync may have failed
  const auto out = LATHE_TRY(env_.create(path));
  const uint64_t tiles = tile_count(file);
  const size_t window = std::min<size_t>(tiles, kTilesPerThread * thread_count(options_.threads));
  std::vector<std::byte> buffers(window * 2 * std::min(kTileBytes, file.size));
  const size_t stride = buffers.size() / (window * 2);
  std::vector<std::span<const std::byte>> ready(window);
  for (uint64_t begin = 0; begin < tiles; begin += window) {
    const size_t count = std::min<uint64_t>(window, tiles - begin);
    const Status decoded = parallel_for(count, thread_count(options_.threads), [&](size_t i, size_t) -> Status {
      const delta::TileId id{task.file, static_cast<uint32_t>(begin + i)};
      const auto scratch = std::span(buffers).subspan(2 * i * stride, stride);
      ready[i] = LATHE_TRY(shards.read(id, scratch));
      if (overlay) overlay->lay_over(tile_range(file, id.tile).offset, scratch.first(ready[i].size()));
      const delta::DeltaTile* change = delta_.find(id);
      if (change) {
        ready[i] = LATHE_TRY(updated(*change, ready[i], std::span(buffers).subspan((2 * i + 1) * stride, stride)));
      }
      return {};
    });
    LATHE_TRY(decoded);
    for (size_t i = 0; i < count; ++i) {
      LATHE_TRY(out->append(ready[i]));
      advance(ready[i].size());
    }
  }
  LATHE_TRY(out->sync());
  return out->close();
}

Status Applier::rewrite(const std::vector<Task>& tasks, const std::optional<Journal>& journal) {
  std::vector<const Task*> left;
  uint64_t all = 0;
  for (const Task& task : tasks) {
    if (!task.rewrite) continue;
    left.push_back(&task);
    all += layout(task).size;
  }
  if (left.empty()) return {};
  total_ += all;
  LATHE_TRY(enough(env_, paths_, all));
  const delta::FileSource shards = LATHE_TRY(delta::FileSource::open(env_, paths_.directory, state_));
  for (const Task* task : left) {
    const bool torn = journal && journal->file == layout(*task).name;
    const Status written = write_new(*task, shards, torn ? &*journal : nullptr);
    if (written.ok()) continue;
    for (const Task* litter : left) {
      // The failure is what is reported; what cannot be removed now is removed by recovery.
      [[maybe_unused]] const Status removed =
          io::remove_if_there(env_, paths_.shard(layout(*litter).name) + delta::kNew);
    }
    return written;
  }
  for (const Task* task : left) {
    const std::string path = paths_.shard(layout(*task).name);
    LATHE_TRY(env_.rename(path + delta::kNew, path));
    ++report_.shards_rewritten;
  }
  return env_.sync_directory(paths_.directory);
}

// The blocks of `now` that differ from `known`, neighbours joined.
void add_blocks(Journal& journal, uint64_t offset, std::span<const std::byte> known, std::span<const std::byte> now) {
  for (size_t begin = 0; begin < now.size(); begin += kBlockBytes) {
    const size_t size = std::min<size_t>(kBlockBytes, now.size() - begin);
    if (std::memcmp(known.data() + begin, now.data() + begin, size) == 0) continue;
    const auto block = now.subspan(begin, size);
    auto& blocks = journal.blocks;
    if (blocks.empty() || blocks.back().offset + blocks.back().bytes.size() != offset + begin) {
      blocks.push_back({.offset = offset + begin});
    }
    blocks.back().bytes.insert(blocks.back().bytes.end(), block.begin(), block.end());
  }
}

Status Applier::write_blocks(const Task& task, std::span<const delta::DeltaTile* const> tiles,
                             const delta::FileSource& shards, io::InPlaceFile& file) {
  const size_t stride = std::min(kTileBytes, layout(task).size);
  std::vector<std::byte> buffers(tiles.size() * 2 * stride);
  std::vector<std::span<const std::byte>> known(tiles.size()), now(tiles.size());
  const Status decoded = parallel_for(tiles.size(), thread_count(options_.threads), [&](size_t i, size_t) -> Status {
    known[i] = LATHE_TRY(shards.read(tiles[i]->id, std::span(buffers).subspan(2 * i * stride, stride)));
    now[i] = LATHE_TRY(updated(*tiles[i], known[i], std::span(buffers).subspan((2 * i + 1) * stride, stride)));
    return {};
  });
  LATHE_TRY(decoded);
  Journal journal{
      .from_version = delta_.info().from_version, .to_version = delta_.info().to_version, .file = layout(task).name};
  for (size_t i = 0; i < tiles.size(); ++i) {
    if (now[i].data() == known[i].data()) continue;
    add_blocks(journal, tile_range(layout(task), tiles[i]->id.tile).offset, known[i], now[i]);
  }
  if (journal.blocks.empty()) return {};
  LATHE_TRY(write_journal(env_, paths_, journal));
  for (const Journal::Block& block : journal.blocks) {
    LATHE_TRY(file.write_at(block.offset, block.bytes));
    report_.bytes_written += block.bytes.size();
  }
  return file.sync();
}

Status Applier::write_in_place(const std::vector<Task>& tasks) {
  for (const Task& task : tasks) total_ += task.rewrite ? 0 : task.tiles.size() * kTileBytes;
  for (const Task& task : tasks) {
    if (task.rewrite) continue;
    const delta::FileSource shards = LATHE_TRY(delta::FileSource::open(env_, paths_.directory, state_));
    const auto file = LATHE_TRY(env_.open_in_place(paths_.shard(layout(task).name)));
    for (size_t begin = 0; begin < task.tiles.size(); begin += kTilesPerJournal) {
      const auto tiles = std::span(task.tiles).subspan(begin, std::min(kTilesPerJournal, task.tiles.size() - begin));
      LATHE_TRY(write_blocks(task, tiles, shards, *file));
      done_ += tiles.size() * kTileBytes;
      if (options_.progress) options_.progress("applying", done_, total_);
    }
    ++report_.shards_in_place;
  }
  return {};
}

}  // namespace

Status check_room(io::Env& env, const delta::Paths& paths, const delta::DeltaReader& delta,
                  const ApplyOptions& options) {
  std::vector<Task> tasks = LATHE_TRY(plan(env, paths, delta, options));
  uint64_t largest = 0;
  for (Task& task : tasks) {
    task.rewrite = false;  // where there is no room for it, in place will do; if something stops that, one is rewritten
    largest = std::max(largest, delta.files()[task.file].size);
  }
  return enough(env, paths, std::max(rewritten_bytes(tasks, delta), largest) + kSpareBytes);
}

Status apply(io::Env& env, const delta::Paths& paths, const delta::DeltaReader& delta, Applied& applied,
             const ApplyOptions& options, ApplyReport& report) {
  delta::WeightState after = LATHE_TRY(delta.follow(applied.state, codec::Direction::kForward));
  std::vector<Task> tasks = LATHE_TRY(plan(env, paths, delta, options));
  std::optional<Journal> journal = LATHE_TRY(read_journal(env, paths));
  const int64_t from = delta.info().from_version, to = delta.info().to_version;
  if (journal && (journal->from_version != from || journal->to_version != to))
    journal.reset();  // of an apply that ended
  for (Task& task : tasks) task.never_in_place |= journal && journal->file == delta.files()[task.file].name;
  const bool room = enough(env, paths, rewritten_bytes(tasks, delta) + kSpareBytes).ok();
  for (Task& task : tasks) task.rewrite = task.never_in_place || (task.rewrite && room);

  Applier applier(env, paths, delta, applied.state, options, report);
  LATHE_TRY(applier.rewrite(tasks, journal));
  LATHE_TRY(applier.write_in_place(tasks));
  // Also when nothing was left to rename: a process that was killed may have done it and not have come to this.
  LATHE_TRY(env.sync_directory(paths.directory));
  Applied now{.version = to, .state = std::move(after)};
  LATHE_TRY(write_applied(env, paths, now));
  applied = std::move(now);
  return io::remove_if_there(env, paths.journal);
}

Status materialize(io::Env& env, const delta::Paths& paths) {
  for (const std::string& name : LATHE_TRY(shard_names(env, paths.directory))) {
    const std::string path = paths.shard(name);
    const io::FileStat stat = LATHE_TRY(env.stat(path));
    if (!stat.is_symlink) continue;
    LATHE_TRY(enough(env, paths, stat.size + kSpareBytes));
    LATHE_TRY(io::copy_file(env, path, path + delta::kNew));
    LATHE_TRY(env.rename(path + delta::kNew, path));
    LATHE_TRY(env.sync_directory(paths.directory));
  }
  return {};
}

}  // namespace lathe::history
