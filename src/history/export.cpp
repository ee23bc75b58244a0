#include "history/export.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "base/parallel.h"
#include "delta/model_dir.h"

namespace lathe::history {
namespace {

// Other formats of weights: they are of whatever version they were written at.
constexpr std::array<std::string_view, 10> kOtherWeights = {
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".onnx", ".ckpt", ".msgpack", ".index.json"};

bool is_companion(const std::string& name) {
  return !name.ends_with(delta::kNew) && std::none_of(kOtherWeights.begin(), kOtherWeights.end(),
                                                      [&](std::string_view ending) { return name.ends_with(ending); });
}

constexpr const char* kIndex = "model.safetensors.index.json";

Status write_file(io::Env& env, const delta::WeightSource& source, uint32_t file, const delta::FileLayout& layout,
                  const std::string& path, const ExportOptions& options, const std::function<void(uint64_t)>& advance) {
  const auto out = LATHE_TRY(env.create(path));
  const uint64_t tiles = tile_count(layout);
  const size_t window = std::min<size_t>(tiles, 2 * thread_count(options.threads));
  const size_t stride = std::min(kTileBytes, layout.size);
  std::vector<std::byte> buffers(window * stride);
  std::vector<std::span<const std::byte>> ready(window);
  for (uint64_t begin = 0; begin < tiles; begin += window) {
    const size_t count = std::min<uint64_t>(window, tiles - begin);
    const Status read = parallel_for(count, thread_count(options.threads), [&](size_t i, size_t) -> Status {
      const delta::TileId id{file, static_cast<uint32_t>(begin + i)};
      const auto scratch = std::span(buffers).subspan(i * stride, stride);
      ready[i] = LATHE_TRY(source.read(id, scratch));
      // What damage of the shards, or a fault of memory, made of it is not handed on.
      thread_local std::vector<std::byte> unused;
      if (hash_tile(ready[i]) == LATHE_TRY(source.hash(id, unused))) return {};
      return corruption(layout.name + " tile " + std::to_string(id.tile) + " is not what its version's hash says");
    });
    LATHE_TRY(read);
    for (size_t i = 0; i < count; ++i) {
      LATHE_TRY(out->append(ready[i]));
      advance(ready[i].size());
    }
  }
  LATHE_TRY(out->sync());
  return out->close();
}

Status write_directory(io::Env& env, const History& history, const VersionSource& source, const std::string& target,
                       const ExportOptions& options) {
  LATHE_TRY(env.create_directories(target));
  const delta::WeightState& state = source.state();
  uint64_t done = 0;
  for (uint32_t file = 0; file < state.files.size(); ++file) {
    const delta::FileLayout& layout = state.files[file].layout;
    LATHE_TRY(write_file(env, source, file, layout, target + "/" + layout.name, options, [&](uint64_t bytes) {
      done += bytes;
      if (options.progress) options.progress("writing", done, state.bytes());
    }));
  }
  const std::string directory = history.paths().directory, index = directory + "/" + kIndex;
  LATHE_TRY(copy_companions(env, directory, target));
  if (LATHE_TRY(env.exists(index))) LATHE_TRY(io::copy_file(env, index, target + "/" + kIndex));
  if (options.as_history) {
    const delta::Paths paths(target);
    LATHE_TRY(io::create_directory_durably(env, paths.lathe));
    LATHE_TRY(io::create_directory_durably(env, paths.deltas));
    LATHE_TRY(write_applied(env, paths, {.version = source.version(), .state = state}));
  }
  return env.sync_directory(target);
}

}  // namespace

Status copy_companions(io::Env& env, const std::string& from, const std::string& to) {
  for (const std::string& name : LATHE_TRY(env.list(from))) {
    if (!is_companion(name) || LATHE_TRY(env.stat(from + "/" + name)).is_directory) continue;
    LATHE_TRY(io::copy_file(env, from + "/" + name, to + "/" + name));
  }
  return {};
}

Status export_version(io::Env& env, const History& history, int64_t version, const std::string& target,
                      const ExportOptions& options) {
  const VersionSource source = LATHE_TRY(history.at(version));
  if (LATHE_TRY(env.exists(target))) {
    const bool directory = LATHE_TRY(env.stat(target)).is_directory;
    if (!directory || !LATHE_TRY(env.list(target)).empty()) {
      return invalid_argument(target + " exists already; name a directory that does not, or an empty one");
    }
  }
  const uint64_t needed = source.state().bytes() + kSpareBytes;
  const std::string parent = io::parent_directory(target);
  LATHE_TRY(env.create_directories(parent));
  if (const uint64_t free = LATHE_TRY(env.free_space(parent)); free < needed) {
    return Error{Code::kIo,
                 "the disk of " + target + " has " + std::to_string(free >> 20) + " MiB free; the model needs " +
                     std::to_string(needed >> 20) + " MiB",
                 ENOSPC};
  }
  const std::string temporary = target + delta::kNew;
  LATHE_TRY(io::remove_tree(env, temporary));
  const Status written = write_directory(env, history, source, temporary, options);
  if (!written.ok()) {
    // The failure is what is reported.
    [[maybe_unused]] const Status removed = io::remove_tree(env, temporary);
    return written;
  }
  LATHE_TRY(env.rename(temporary, target));
  return env.sync_directory(parent);
}

namespace {

// A history as it should be, checked piece by piece; what is wrong is collected.
class Verifier {
 public:
  Verifier(io::Env& env, const delta::Paths& paths, const Applied& applied, int threads,
           const delta::Progress& progress)
      : env_(env), paths_(paths), applied_(applied), threads_(threads), progress_(progress) {}

  Result<Verification> run() {
    result_ = {.version = applied_.version, .root = applied_.state.root()};
    LATHE_TRY(shards());
    LATHE_TRY(deltas());
    return std::move(result_);
  }

 private:
  Status shards() {
    for (uint32_t file = 0; file < applied_.state.files.size(); ++file) {
      const delta::FileState& state = applied_.state.files[file];
      const delta::WeightState alone{.files = {state}};
      const auto source = delta::FileSource::open(env_, paths_.directory, alone);
      if (!source.ok()) {
        result_.damages.push_back({state.layout.name, source.error().message});
        continue;
      }
      LATHE_TRY(tiles(*source, alone, file));
    }
    return {};
  }

  Status tiles(const delta::FileSource& source, const delta::WeightState& alone, uint32_t file) {
    for (size_t at = 0; at < alone.tiles();) {
      const auto changed = changed_tiles(source, alone, 64, threads_, at);
      if (!changed.ok()) {
        result_.damages.push_back({alone.files[0].layout.name, changed.error().message});
        return {};
      }
      for (const delta::TileId& id : *changed) {
        result_.damages.push_back({applied_.state.describe({file, id.tile}),
                                   "its hash is not that of version " + std::to_string(applied_.version)});
      }
      if (progress_) progress_("hashing", result_.bytes + at * kTileBytes, applied_.state.bytes());
    }
    result_.tiles += alone.tiles();
    result_.bytes += alone.bytes();
    return {};
  }

  Status deltas() {
    const Chain chain = LATHE_TRY(read_chain(env_, paths_));
    std::optional<Root> before;
    for (const DeltaFile& delta : chain.deltas) {
      const std::string name = ".lathe/deltas/" + delta::Paths::delta_name(delta.from, delta.to);
      const auto reader = delta::DeltaReader::open(env_, paths_.delta(delta.from, delta.to));
      const Status whole = reader.ok() ? reader->verify() : Status(reader.error());
      if (!whole.ok()) {
        result_.damages.push_back({name, whole.error().message});
        before.reset();
        continue;
      }
      const delta::DeltaInfo& info = reader->info();
      if (info.from_version != delta.from || info.to_version != delta.to) {
        result_.damages.push_back({name, "it is the delta of other versions"});
      }
      if (before && *before != info.from_root) {
        result_.damages.push_back({name, "it does not begin with what the delta before ends with"});
      }
      before = info.to_root;
      ++result_.deltas;
      result_.bytes += reader->file_bytes();
    }
    if (before && *before != result_.root) {
      result_.damages.push_back({".lathe/deltas", "the newest delta does not end with what the shards should hold"});
    }
    return {};
  }

  io::Env& env_;
  const delta::Paths& paths_;
  const Applied& applied_;
  int threads_;
  const delta::Progress& progress_;
  Verification result_;
};

}  // namespace

Result<Verification> verify(io::Env& env, const std::string& directory, int threads, const delta::Progress& progress) {
  const auto lock = LATHE_TRY(delta::lock_history_to_read(env, directory));
  const delta::Paths paths(directory);
  auto applied = recover(env, directory, {.threads = threads});
  if (!applied.ok()) return unwritable(directory, applied.error());
  if (!*applied) {
    LATHE_TRY(delta::ModelDir::open(env, directory));  // whole, as far as headers say
    return Verification{.history = false};
  }
  return Verifier(env, paths, **applied, threads, progress).run();
}

}  // namespace lathe::history
