#include "history/history.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <nlohmann/json.hpp>

namespace lathe::history {
namespace {

using Json = nlohmann::json;

std::optional<DeltaFile> parse_name(const std::string& name) {
  DeltaFile delta;
  const char *begin = name.data(), *end = begin + name.size();
  auto [dash, first] = std::from_chars(begin, end, delta.from);
  if (first != std::errc() || dash == end || *dash != '-') return std::nullopt;
  const auto [dot, second] = std::from_chars(dash + 1, end, delta.to);
  if (second != std::errc() || std::string(dot, end) != ".dlt" || delta.to <= delta.from) return std::nullopt;
  return delta;
}

// Temporary files that nothing will ask for any more.
Status remove_litter(io::Env& env, const std::string& directory, const std::string& ending) {
  if (!LATHE_TRY(env.exists(directory))) return {};
  for (const std::string& file : LATHE_TRY(env.list(directory))) {
    if (file.ends_with(ending)) LATHE_TRY(env.remove(directory + "/" + file));
  }
  return {};
}

// The merged deltas, once the one that replaces them is known to be good: a crash came between.
Status remove_merged(io::Env& env, const delta::Paths& paths, const Chain& chain) {
  if (chain.merged.empty()) return {};
  std::optional<DeltaFile> verified;
  for (const DeltaFile& old : chain.merged) {
    const auto whole = std::find_if(chain.deltas.begin(), chain.deltas.end(),
                                    [&](const DeltaFile& d) { return d.from <= old.from && old.to <= d.to; });
    LATHE_CHECK(whole != chain.deltas.end());
    if (verified != *whole) {
      const delta::DeltaReader reader = LATHE_TRY(delta::DeltaReader::open(env, paths.delta(whole->from, whole->to)));
      LATHE_TRY(reader.verify().at(paths.delta(whole->from, whole->to)));
      verified = *whole;
    }
    LATHE_TRY(env.remove(paths.delta(old.from, old.to)));
  }
  return env.sync_directory(paths.deltas);
}

// state.json is lost or damaged: the shards themselves say which version they hold.
Result<std::optional<Applied>> recognise(io::Env& env, const delta::Paths& paths, const Chain& chain, int threads) {
  const auto names = LATHE_TRY(shard_names(env, paths.directory));
  Applied applied{.state = LATHE_TRY(delta::hash_files(env, paths.directory, names, threads))};
  const Root root = applied.state.root();
  for (auto delta = chain.deltas.rbegin(); delta != chain.deltas.rend(); ++delta) {
    const delta::DeltaReader reader = LATHE_TRY(delta::DeltaReader::open(env, paths.delta(delta->from, delta->to)));
    if (reader.info().to_root != root && reader.info().from_root != root) continue;
    applied.version = reader.info().to_root == root ? delta->to : delta->from;
    LATHE_TRY(write_applied(env, paths, applied));
    return std::optional<Applied>(std::move(applied));
  }
  return corruption(paths.state + " is lost, and the shards are of none of the versions in " + paths.deltas +
                    "; restore them from a copy, or move " + paths.lathe + " away to start a new history");
}

Result<std::optional<Applied>> find_applied(io::Env& env, const delta::Paths& paths, const Chain& chain, int threads) {
  auto applied = read_applied(env, paths);
  const bool lost = applied.ok() ? !*applied : applied.error().code == Code::kCorruption;
  return lost && !chain.deltas.empty() ? recognise(env, paths, chain, threads) : applied;
}

}  // namespace

std::string to_json(const VersionRecord& record) {
  Json json = {{"kind", record.kind}};
  if (!record.note.empty()) json["note"] = record.note;
  if (record.restores) json["restores"] = *record.restores;
  if (!record.lesson.empty()) json["lesson"] = record.lesson;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

VersionRecord parse_record(const std::string& text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  VersionRecord record;
  if (!json.is_object()) return record;
  if (json.contains("kind") && json["kind"].is_string()) record.kind = json["kind"].get<std::string>();
  if (json.contains("note") && json["note"].is_string()) record.note = json["note"].get<std::string>();
  if (json.contains("restores") && json["restores"].is_number_integer())
    record.restores = json["restores"].get<int64_t>();
  if (json.contains("lesson") && json["lesson"].is_string()) record.lesson = json["lesson"].get<std::string>();
  return record;
}

Result<Chain> read_chain(io::Env& env, const delta::Paths& paths) {
  Chain chain;
  if (!LATHE_TRY(env.exists(paths.deltas))) return chain;
  std::vector<DeltaFile> files;
  for (const std::string& name : LATHE_TRY(env.list(paths.deltas))) {
    if (const auto delta = parse_name(name)) files.push_back(*delta);
  }
  // Of those that begin at one version the longest comes first; the others, and what lies inside it, were merged into
  // it.
  std::sort(files.begin(), files.end(),
            [](const DeltaFile& a, const DeltaFile& b) { return std::pair(a.from, -a.to) < std::pair(b.from, -b.to); });
  for (const DeltaFile& file : files) {
    if (!chain.deltas.empty() && file.to <= chain.deltas.back().to) {
      chain.merged.push_back(file);
    } else if (!chain.deltas.empty() && file.from != chain.deltas.back().to) {
      return corruption(paths.deltas + " lacks what leads from version " + std::to_string(chain.deltas.back().to) +
                        " to version " + std::to_string(file.from) +
                        ": a file was removed; restore it from a copy, or move " + paths.lathe +
                        " away to start a new history");
    } else {
      chain.deltas.push_back(file);
    }
  }
  return chain;
}

Result<std::optional<Applied>> recover(io::Env& env, const std::string& directory, const ApplyOptions& options) {
  const delta::Paths paths(directory);
  if (!LATHE_TRY(env.exists(paths.lathe))) return std::optional<Applied>();
  LATHE_TRY(remove_litter(env, directory, std::string(".safetensors") + delta::kNew));
  LATHE_TRY(remove_litter(env, paths.lathe, delta::kNew));
  LATHE_TRY(remove_litter(env, paths.deltas, delta::kNew));
  // A process that was killed may have renamed a file and not have made the name durable. Nothing may build on it
  // before.
  LATHE_TRY(env.sync_directory(paths.lathe));
  if (LATHE_TRY(env.exists(paths.deltas))) LATHE_TRY(env.sync_directory(paths.deltas));
  const Chain chain = LATHE_TRY(read_chain(env, paths));
  LATHE_TRY(remove_merged(env, paths, chain));
  std::optional<Applied> applied = LATHE_TRY(find_applied(env, paths, chain, options.threads));
  if (!applied) return applied;
  for (const DeltaFile& delta : chain.deltas) {
    if (delta.to <= applied->version) continue;
    if (delta.from != applied->version) {
      return corruption("the shards hold version " + std::to_string(applied->version) + ", but " + paths.deltas +
                        " has no such version; restore the directory from a copy, or move " + paths.lathe +
                        " away to start a new history");
    }
    const std::string path = paths.delta(delta.from, delta.to);
    const delta::DeltaReader reader = LATHE_TRY(delta::DeltaReader::open(env, path));
    ApplyReport report;
    LATHE_TRY(apply(env, paths, reader, *applied, options, report).at("finishing version " + std::to_string(delta.to)));
  }
  return applied;
}

Result<History> History::open(io::Env& env, const std::string& directory, const ApplyOptions& options) {
  History history(env, delta::Paths(directory));
  std::optional<Applied> applied = LATHE_TRY(recover(env, directory, options));
  if (!applied) applied = LATHE_TRY(adopt(env, history.paths_, options.threads));
  Chain chain = LATHE_TRY(read_chain(env, history.paths_));
  LATHE_TRY(history.set(std::move(*applied), std::move(chain.deltas)));
  return history;
}

Result<std::optional<History>> History::open_to_read(io::Env& env, const std::string& directory,
                                                     const ApplyOptions& options) {
  History history(env, delta::Paths(directory));
  auto applied = recover(env, directory, options);
  if (!applied.ok()) return unwritable(directory, applied.error());
  if (!*applied) return std::optional<History>();
  Chain chain = LATHE_TRY(read_chain(env, history.paths_));
  LATHE_TRY(history.set(std::move(**applied), std::move(chain.deltas)));
  return std::optional<History>(std::move(history));
}

Status History::set(Applied head, std::vector<DeltaFile> deltas) {
  head_ = std::make_unique<Applied>(std::move(head));
  deltas_ = std::move(deltas);
  if (deltas_.empty() || deltas_.back().to == head_->version) return {};
  return corruption(paths_.deltas + " ends at version " + std::to_string(deltas_.back().to) +
                    ", the shards hold version " + std::to_string(head_->version) +
                    ": files were removed; restore them from a copy, or move " + paths_.lathe +
                    " away to start a new history");
}

Error unwritable(const std::string& directory, const Error& error) {
  if (error.native != EACCES && error.native != EROFS) return error;
  return {Code::kUnavailable, directory +
                                  " needs recovery first, because a sync or a prune was interrupted; run `lathe "
                                  "verify` as a user who may write (" +
                                  error.message + ")"};
}

std::vector<int64_t> History::versions() const {
  std::vector<int64_t> versions;
  for (const DeltaFile& delta : deltas_) versions.push_back(delta.from);
  versions.push_back(head_->version);
  return versions;
}

const DeltaFile* History::leading_to(int64_t version) const {
  const auto found = std::find_if(deltas_.begin(), deltas_.end(), [&](const DeltaFile& d) { return d.to == version; });
  return found == deltas_.end() ? nullptr : &*found;
}

Result<const delta::DeltaReader*> History::reader(const DeltaFile& delta) const {
  auto& reader = readers_[delta.from];
  if (!reader) {
    reader = std::make_unique<delta::DeltaReader>(
        LATHE_TRY(delta::DeltaReader::open(*env_, paths_.delta(delta.from, delta.to))));
  }
  return reader.get();
}

Result<VersionSource> History::at(int64_t version) const {
  const std::vector<int64_t> there = versions();
  if (!std::binary_search(there.begin(), there.end(), version)) {
    std::string names;
    for (size_t i = there.size() > 20 ? there.size() - 20 : 0; i < there.size(); ++i) {
      names += (names.empty() ? "" : ", ") + std::to_string(there[i]);
    }
    return not_found("there is no version " + std::to_string(version) + "; there are " +
                     (there.size() > 20 ? "older ones and " : "") + names);
  }
  delta::WeightState state = head_->state;
  std::vector<const delta::DeltaReader*> back;
  for (auto delta = deltas_.rbegin(); delta != deltas_.rend() && delta->to > version; ++delta) {
    back.push_back(LATHE_TRY(reader(*delta)));
    state = LATHE_TRY(back.back()->follow(state, codec::Direction::kBackward).at(paths_.delta(delta->from, delta->to)));
  }
  VersionSource source(LATHE_TRY(delta::FileSource::open(*env_, paths_.directory, head_->state)), version,
                       std::move(state));
  source.back_ = std::move(back);
  return source;
}

Result<Hash128> VersionSource::hash(delta::TileId id, std::span<std::byte>) const {
  return state_.files[id.file].tiles[id.tile];
}

Result<std::span<const std::byte>> VersionSource::read(delta::TileId id, std::span<std::byte> scratch) const {
  thread_local std::vector<std::byte> other(kTileBytes);
  std::span<const std::byte> now = LATHE_TRY(shards_.read(id, scratch));
  bool in_scratch = true;
  for (const delta::DeltaReader* delta : back_) {
    const delta::DeltaTile* tile = delta->find(id);
    if (!tile) continue;
    const auto out = (in_scratch ? std::span(other) : scratch).first(now.size());
    LATHE_TRY(delta->decode(*tile, codec::Direction::kBackward, now, out)
                  .at("version " + std::to_string(delta->info().from_version)));
    now = out;
    in_scratch = !in_scratch;
  }
  if (in_scratch) return now;
  std::copy(now.begin(), now.end(), scratch.begin());
  return std::span<const std::byte>(scratch.first(now.size()));
}

}  // namespace lathe::history
