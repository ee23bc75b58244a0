#include "history/push.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "history/export.h"

namespace lathe::history {
namespace {

using Json = nlohmann::json;

// The bytes into a file of their own, durable under a name that recovery removes.
Status store(io::Env& env, const std::string& path, uint64_t size, const ReadBytes& read) {
  LATHE_TRY(io::remove_if_there(env, path));
  const auto file = LATHE_TRY(env.create(path));
  std::vector<std::byte> buffer(std::min<uint64_t>(size, uint64_t{1} << 20));
  for (uint64_t done = 0; done < size;) {
    const auto piece = std::span(buffer).first(std::min<uint64_t>(buffer.size(), size - done));
    LATHE_TRY(read(piece));
    LATHE_TRY(file->append(piece));
    done += piece.size();
  }
  LATHE_TRY(file->sync());
  return file->close();
}

// What was stored becomes the next delta. Its versions are the sender's: a copy without deltas of its own takes them
// over.
Result<DeltaFile> accept(io::Env& env, const History& history, const std::string& path, const ApplyOptions& options) {
  const delta::Paths& paths = history.paths();
  const delta::DeltaReader delta = LATHE_TRY(delta::DeltaReader::open(env, path));
  LATHE_TRY(delta.verify());
  const delta::DeltaInfo& info = delta.info();
  Applied head = history.head();
  if (info.from_root != head.state.root() || (info.from_version != head.version && !history.deltas().empty())) {
    return Error{Code::kConflict, "the delta leads from version " + std::to_string(info.from_version) + ", but " +
                                      paths.directory + " holds version " + std::to_string(head.version) +
                                      ": it has diverged from this history"};
  }
  LATHE_TRY(delta.follow(head.state, codec::Direction::kForward));  // its tiles are those of the files here
  LATHE_TRY(check_room(env, paths, delta, options));
  if (info.from_version != head.version) {
    head.version = info.from_version;
    LATHE_TRY(write_applied(env, paths, head));
  }
  LATHE_TRY(env.rename(path, paths.delta(info.from_version, info.to_version)));
  return DeltaFile{info.from_version, info.to_version};
}

}  // namespace

Result<CopyState> copy_state(io::Env& env, const std::string& directory, const ApplyOptions& options) {
  const auto lock = LATHE_TRY(delta::lock_history(env, directory));
  const History history = LATHE_TRY(History::open(env, directory, options));
  return CopyState{.version = history.head().version, .root = history.head().state.root()};
}

Result<std::vector<DeltaFile>> deltas_for(const History& history, const CopyState& copy) {
  // From the newest back, so that of versions with equal weights the one with the least to send is taken.
  const auto& deltas = history.deltas();
  if (history.head().state.root() == copy.root) return std::vector<DeltaFile>();
  for (size_t i = deltas.size(); i-- > 0;) {
    if (LATHE_TRY(history.reader(deltas[i]))->info().from_root != copy.root) continue;
    return std::vector<DeltaFile>(deltas.begin() + static_cast<ptrdiff_t>(i), deltas.end());
  }
  return Error{Code::kConflict,
               "the copy holds weights (root " + copy.root.hex().substr(0, 12) +
                   ") that are of no version in the history of " + history.paths().directory +
                   "; make them equal once with `lathe sync COPY --from MODEL_DIR`, or copy the model anew"};
}

Result<CopyState> receive(io::Env& env, const std::string& directory, uint64_t size, const ReadBytes& read,
                          const ApplyOptions& options) {
  const auto owner = LATHE_TRY(delta::lock_directory(env, directory));
  const auto lock = LATHE_TRY(delta::lock_history(env, directory));
  const History history = LATHE_TRY(History::open(env, directory, options));
  const delta::Paths& paths = history.paths();
  const std::string temporary = paths.deltas + "/received" + delta::kNew;
  LATHE_TRY(io::create_directory_durably(env, paths.deltas));
  const auto accepted = [&]() -> Result<DeltaFile> {
    LATHE_TRY(store(env, temporary, size, read));
    return accept(env, history, temporary, options);
  }();
  if (!accepted.ok()) {
    // The failure is what is reported; what cannot be removed now is removed by recovery.
    [[maybe_unused]] const Status removed = io::remove_if_there(env, temporary);
    return accepted.error();
  }
  LATHE_TRY(env.sync_directory(paths.deltas));  // the durable point
  const auto applied = LATHE_TRY(recover(env, directory, options));
  return CopyState{.version = applied->version, .root = applied->state.root()};
}

Result<CopyState> push(io::Env& env, const std::string& directory, const std::string& destination,
                       const ApplyOptions& options) {
  const auto lock = LATHE_TRY(delta::lock_history(env, directory));
  const History history = LATHE_TRY(History::open(env, directory, options));
  if (!LATHE_TRY(env.exists(destination))) {
    LATHE_TRY(export_version(env, history, history.head().version, destination,
                             {.threads = options.threads, .as_history = true, .progress = options.progress}));
  }
  CopyState copy = LATHE_TRY(copy_state(env, destination, options));
  for (const DeltaFile& delta : LATHE_TRY(deltas_for(history, copy))) {
    const auto file = LATHE_TRY(env.open_read(history.paths().delta(delta.from, delta.to)));
    uint64_t done = 0;
    const auto read = [&](std::span<std::byte> out) -> Status {
      LATHE_TRY(file->read_at(done, out));
      done += out.size();
      return {};
    };
    copy = LATHE_TRY(receive(env, destination, file->size(), read, options));
  }
  if (copy.root != history.head().state.root()) return internal(destination + " did not come to the same root");
  LATHE_TRY(record_pushed(env, history.paths(), destination, history.head().version));
  return copy;
}

Result<std::map<std::string, int64_t>> pushed_versions(io::Env& env, const delta::Paths& paths) {
  std::map<std::string, int64_t> versions;
  if (!LATHE_TRY(env.exists(paths.pushed))) return versions;
  const std::string text = LATHE_TRY(io::read_text(env, paths.pushed));
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return corruption(paths.pushed + " is damaged; remove it if no copy is to be followed");
  for (const auto& [destination, version] : json.items()) {
    if (version.is_number_integer()) versions[destination] = version.get<int64_t>();
  }
  return versions;
}

Status record_pushed(io::Env& env, const delta::Paths& paths, const std::string& destination, int64_t version) {
  auto versions = LATHE_TRY(pushed_versions(env, paths));
  versions[destination] = version;
  return io::write_text_atomically(env, paths.pushed, Json(versions).dump(2));
}

}  // namespace lathe::history
