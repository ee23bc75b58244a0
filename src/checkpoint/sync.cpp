#include "checkpoint/sync.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "checkpoint/model_dir.h"

namespace lathe::checkpoint {
namespace {

using Json = nlohmann::json;

constexpr size_t kBlock = size_t{4} << 20;
constexpr uint64_t kSpareBytes = 16 << 20;  // free space to leave
constexpr const char* kNew = ".lathe-new";

// The names under a model directory, in one place.
struct Paths {
  std::string model, lathe, previous, intent, version, lock;
  explicit Paths(const std::string& directory)
      : model(directory + "/"),
        lathe(model + ".lathe"),
        previous(lathe + "/previous"),
        intent(lathe + "/install.json"),
        version(lathe + "/version.json"),
        lock(lathe + "/lock") {}
  std::string shard(const std::string& file) const { return model + file; }
  std::string new_shard(const std::string& file) const { return model + file + kNew; }
  std::string previous_shard(const std::string& file) const { return previous + "/" + file; }
};

// A set of shards that is about to take the place of those with the same names.
struct Intent {
  std::vector<std::string> shards;
  DirectoryVersion after;
};

Json to_json(const DirectoryVersion& v) {
  Json json = {{"version", v.version}};
  if (v.previous) json["previous"] = *v.previous;
  return json;
}

Result<Json> read_json(io::Env& env, const std::string& path) {
  const std::string text = LATHE_TRY(io::read_text(env, path));
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("version") || !json["version"].is_number_integer()) {
    return corruption(path + " is damaged; move it away to start a new history");
  }
  return json;
}

DirectoryVersion version_of(const Json& json) {
  DirectoryVersion v{.version = json["version"].get<int64_t>()};
  if (json.contains("previous") && json["previous"].is_number_integer()) v.previous = json["previous"].get<int64_t>();
  return v;
}

// Steps behind the point of no return. Each can be repeated: a shard whose new file is gone was already moved.
Status finish_install(io::Env& env, const Paths& paths, const Intent& intent) {
  LATHE_TRY(env.create_directories(paths.previous));
  for (const std::string& file : intent.shards) {
    if (!LATHE_TRY(env.exists(paths.new_shard(file)))) continue;
    const std::string keep = paths.previous_shard(file) + kNew;
    LATHE_TRY(remove_if_there(env, keep));
    LATHE_TRY(env.link(paths.shard(file), keep));
    LATHE_TRY(env.rename(keep, paths.previous_shard(file)));
    LATHE_TRY(env.sync_directory(paths.previous));
    LATHE_TRY(env.rename(paths.new_shard(file), paths.shard(file)));
    LATHE_TRY(env.sync_directory(paths.model));
  }
  // Shards kept from an earlier install belong to another version than the ones just kept.
  const std::set<std::string> kept(intent.shards.begin(), intent.shards.end());
  for (const std::string& file : LATHE_TRY(env.list(paths.previous))) {
    if (!kept.contains(file)) LATHE_TRY(env.remove(paths.previous_shard(file)));
  }
  LATHE_TRY(io::write_text_atomically(env, paths.version, to_json(intent.after).dump()));
  LATHE_TRY(env.remove(paths.intent));
  return env.sync_directory(paths.lathe);
}

// The new shards are durable under their temporary names; writing the intent is the point of no return.
Status install(io::Env& env, const Paths& paths, const Intent& intent) {
  LATHE_TRY(env.sync_directory(paths.model));
  Json json = to_json(intent.after);
  json["shards"] = intent.shards;
  LATHE_TRY(io::write_text_atomically(env, paths.intent, json.dump()));
  return finish_install(env, paths, intent);
}

// A failure before the intent: the old files are untouched, the new ones are litter.
Error abandon(io::Env& env, const Paths& paths, const std::vector<std::string>& shards, const Error& error) {
  for (const std::string& file : shards) {
    const Status removed = remove_if_there(env, paths.new_shard(file));
    if (!removed.ok()) return error.at("sync failed, and " + paths.new_shard(file) + " could not be removed");
  }
  return error;
}

// Calls visit(tensor, block, live block) over all tensor bytes of a shard; either side of the pair may be written.
Status for_each_block(
    const Shard& shard, const LiveTensor& live,
    const std::function<Status(std::span<const std::byte> disk, std::span<const std::byte> now)>& visit) {
  std::vector<std::byte> block;
  for (const TensorInfo& info : shard.header.tensors) {
    const auto bytes = live(info.name);
    if (bytes && bytes->size() != info.size()) {
      return internal("live tensor " + info.name + " has " + std::to_string(bytes->size()) + " bytes, " +
                      std::to_string(info.size()) + " on disk");
    }
    for (uint64_t done = 0; done < info.size(); done += kBlock) {
      block.resize(std::min<uint64_t>(kBlock, info.size() - done));
      LATHE_TRY(shard.data->read_at(shard.header.data_offset + info.begin + done, block));
      const std::span<const std::byte> disk(block);
      LATHE_TRY(visit(disk, bytes ? bytes->subspan(done, block.size()) : disk));
    }
  }
  return {};
}

Result<bool> changed(const Shard& shard, const LiveTensor& live) {
  bool differs = false;
  LATHE_TRY(for_each_block(shard, live, [&](auto disk, auto now) -> Status {
    differs = differs || std::memcmp(disk.data(), now.data(), disk.size()) != 0;
    return {};
  }));
  return differs;
}

// The shard with live bytes, header unchanged, durable under its temporary name.
Status write_new(io::Env& env, const Paths& paths, const Shard& shard, const LiveTensor& live) {
  const auto out = LATHE_TRY(env.create(paths.new_shard(shard.file)));
  std::vector<std::byte> header(shard.header.data_offset);
  LATHE_TRY(shard.data->read_at(0, header));
  LATHE_TRY(out->append(header));
  LATHE_TRY(for_each_block(shard, live, [&](auto, auto now) { return out->append(now); }));
  LATHE_TRY(out->sync());
  return out->close();
}

Status check_writable(io::Env& env, const Paths& paths, const std::vector<const Shard*>& shards) {
  uint64_t needed = kSpareBytes;
  for (const Shard* shard : shards) {
    if (LATHE_TRY(env.stat(paths.shard(shard->file))).is_symlink) {
      return unsupported(
          paths.shard(shard->file) +
          " is a symbolic link, as in a Hugging Face cache; copy the model to a directory of its own first (cp -rL)");
    }
    needed += shard->data->size();
  }
  const uint64_t free = LATHE_TRY(env.free_space(paths.model));
  if (free < needed) {
    return Error{Code::kIo,
                 "the disk of " + paths.model + " has " + std::to_string(free >> 20) + " MiB free; a sync needs " +
                     std::to_string(needed >> 20) + " MiB beside the old files",
                 ENOSPC};
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<io::FileLock>> lock_directory(io::Env& env, const std::string& directory) {
  const Paths paths(directory);
  if (!LATHE_TRY(env.exists(directory))) return not_found("there is no model directory " + directory);
  LATHE_TRY(env.create_directories(paths.lathe));
  auto lock = env.lock(paths.lock, io::IfLocked::kFail);
  if (!lock.ok() && lock.error().code == Code::kConflict) {
    return Error{Code::kConflict, "another lathe process works on " + directory + "; stop it, or talk to its server"};
  }
  return lock;
}

Result<DirectoryVersion> read_version(io::Env& env, const std::string& directory) {
  const Paths paths(directory);
  if (!LATHE_TRY(env.exists(paths.version))) return DirectoryVersion{};
  const Json json = LATHE_TRY(read_json(env, paths.version));
  return version_of(json);
}

namespace {

// Temporary files that nothing will ask for any more.
Status remove_litter(io::Env& env, const std::string& directory, const std::string& ending) {
  if (!LATHE_TRY(env.exists(directory))) return {};
  for (const std::string& file : LATHE_TRY(env.list(directory))) {
    if (file.ends_with(ending)) LATHE_TRY(env.remove(directory + "/" + file));
  }
  return {};
}

Result<Intent> read_intent(io::Env& env, const Paths& paths) {
  const Json json = LATHE_TRY(read_json(env, paths.intent));
  if (!json.contains("shards") || !json["shards"].is_array()) return corruption(paths.intent + " is damaged");
  Intent intent{.after = version_of(json)};
  for (const Json& file : json["shards"]) {
    if (!file.is_string()) return corruption(paths.intent + " is damaged");
    intent.shards.push_back(file.get<std::string>());
  }
  return intent;
}

}  // namespace

Status recover(io::Env& env, const std::string& directory) {
  const Paths paths(directory);
  if (LATHE_TRY(env.exists(paths.intent))) {
    const Intent intent = LATHE_TRY(read_intent(env, paths));
    LATHE_TRY(finish_install(env, paths, intent).at("finishing an interrupted sync"));
  }
  // Without an intent new shards are litter; with one they have just been moved.
  LATHE_TRY(remove_litter(env, directory, std::string(".safetensors") + kNew));
  LATHE_TRY(remove_litter(env, paths.lathe, kNew));
  return remove_litter(env, paths.previous, kNew);
}

Result<SyncReport> sync(io::Env& env, const std::string& directory, const LiveTensor& live, int64_t version) {
  const Paths paths(directory);
  const DirectoryVersion before = LATHE_TRY(read_version(env, directory));
  SyncReport report{.now = before};
  const ModelDir dir = LATHE_TRY(ModelDir::open(env, directory));
  std::vector<const Shard*> shards;
  for (const Shard& shard : dir.shards()) {
    if (LATHE_TRY(changed(shard, live))) shards.push_back(&shard);
  }
  if (shards.empty() && version == before.version) return report;
  LATHE_TRY(check_writable(env, paths, shards));
  LATHE_TRY(env.create_directories(paths.lathe));

  Intent intent{.after = {.version = version, .previous = before.version}};
  for (const Shard* shard : shards) {
    intent.shards.push_back(shard->file);
    const Status written = write_new(env, paths, *shard, live);
    if (!written.ok()) return abandon(env, paths, intent.shards, written.error());
    report.bytes_written += shard->data->size();
  }
  report.shards_written = static_cast<int64_t>(shards.size());
  LATHE_TRY(install(env, paths, intent));
  report.now = intent.after;
  return report;
}

Result<SyncReport> rollback(io::Env& env, const std::string& directory) {
  const Paths paths(directory);
  const DirectoryVersion before = LATHE_TRY(read_version(env, directory));
  if (!before.previous) return not_found(directory + " has no previous version to go back to");
  Intent intent{.shards = LATHE_TRY(env.list(paths.previous)),
                .after = {.version = before.version + 1, .previous = before.version}};
  SyncReport report{.now = intent.after, .shards_written = static_cast<int64_t>(intent.shards.size())};
  for (const std::string& file : intent.shards) {
    LATHE_TRY(remove_if_there(env, paths.new_shard(file)));
    LATHE_TRY(env.link(paths.previous_shard(file), paths.new_shard(file)));
  }
  LATHE_TRY(install(env, paths, intent));
  return report;
}

}  // namespace lathe::checkpoint
