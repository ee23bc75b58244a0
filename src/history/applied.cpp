#include "history/applied.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "delta/delta_reader.h"
#include "delta/model_dir.h"

namespace lathe::history {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "lathe state 1";
constexpr size_t kHexOfHash = 32;

void append_hex(std::string& text, const Hash128& hash) {
  char digits[kHexOfHash + 1];
  std::snprintf(digits, sizeof digits, "%016lx%016lx", hash.high, hash.low);
  text += digits;
}

Json to_json(const delta::FileState& file) {
  Json runs = Json::array();
  for (const delta::TypeRun& run : file.layout.runs) runs.push_back({run.end, static_cast<int>(run.type)});
  std::string tiles;
  tiles.reserve(file.tiles.size() * kHexOfHash);
  for (const Hash128& hash : file.tiles) append_hex(tiles, hash);
  return {{"name", file.layout.name},
          {"size", file.layout.size},
          {"data_offset", file.layout.data_offset},
          {"runs", std::move(runs)},
          {"tiles", std::move(tiles)}};
}

uint64_t from_hex(const std::string& text, size_t at) {
  return std::stoull(text.substr(at, 16), nullptr, 16);
}

// Throws what nlohmann::json or stoull throw at a value of another kind.
delta::FileState file_state(const Json& json) {
  delta::FileState file;
  file.layout = {.name = json.at("name").get<std::string>(),
                 .size = json.at("size").get<uint64_t>(),
                 .data_offset = json.at("data_offset").get<uint64_t>()};
  for (const Json& run : json.at("runs")) {
    file.layout.runs.push_back({run.at(0).get<uint64_t>(), static_cast<codec::ElementType>(run.at(1).get<uint8_t>())});
  }
  const std::string tiles = json.at("tiles").get<std::string>();
  for (size_t at = 0; at + kHexOfHash <= tiles.size(); at += kHexOfHash) {
    file.tiles.push_back({.low = from_hex(tiles, at + 16), .high = from_hex(tiles, at)});
  }
  return file;
}

Result<Applied> parse(const std::string& text) {
  const Error damaged = corruption("it is damaged");
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return damaged;
  if (!json.contains("format") || json["format"] != kFormat) return unsupported("it is of another version of lathe");
  Applied applied;
  try {
    applied.version = json.at("version").get<int64_t>();
    for (const Json& file : json.at("files")) applied.state.files.push_back(file_state(file));
    if (!check(applied.state).ok() || applied.state.root().hex() != json.at("root").get<std::string>()) return damaged;
  } catch (const std::exception&) {
    return damaged;
  }
  return applied;
}

}  // namespace

Result<std::optional<Applied>> read_applied(io::Env& env, const delta::Paths& paths) {
  if (!LATHE_TRY(env.exists(paths.state))) return std::optional<Applied>();
  const std::string text = LATHE_TRY(io::read_text(env, paths.state));
  return std::optional<Applied>(LATHE_TRY(parse(text).at(paths.state)));
}

Status write_applied(io::Env& env, const delta::Paths& paths, const Applied& applied) {
  Json json = {{"format", kFormat},
               {"version", applied.version},
               {"root", applied.state.root().hex()},
               {"files", Json::array()}};
  for (const delta::FileState& file : applied.state.files) json["files"].push_back(to_json(file));
  return io::write_text_atomically(env, paths.state, json.dump());
}

Result<std::vector<std::string>> shard_names(io::Env& env, const std::string& directory) {
  const delta::ModelDir dir = LATHE_TRY(delta::ModelDir::open(env, directory));
  std::vector<std::string> names;
  for (const delta::Shard& shard : dir.shards()) names.push_back(shard.file);
  std::sort(names.begin(), names.end());
  return names;
}

Result<Applied> adopt(io::Env& env, const delta::Paths& paths, int threads) {
  const auto names = LATHE_TRY(shard_names(env, paths.directory));
  // Whoever wrote the files may not have waited for the disk; what version 0 is must not depend on that.
  for (const std::string& name : names) {
    const auto file = LATHE_TRY(env.open_in_place(paths.shard(name)));
    LATHE_TRY(file->sync());
  }
  Applied applied{.state = LATHE_TRY(delta::hash_files(env, paths.directory, names, threads))};
  LATHE_TRY(io::create_directory_durably(env, paths.lathe));
  LATHE_TRY(io::create_directory_durably(env, paths.deltas));
  LATHE_TRY(env.sync_directory(paths.directory));
  LATHE_TRY(write_applied(env, paths, applied));
  return applied;
}

Status refuse_links(io::Env& env, const delta::Paths& paths) {
  for (const std::string& name : LATHE_TRY(shard_names(env, paths.directory))) {
    if (!LATHE_TRY(env.stat(paths.shard(name))).is_symlink) continue;
    return unsupported(paths.shard(name) +
                       " is a symbolic link, as in a Hugging Face cache; add --materialize to replace the links by "
                       "copies, or copy the model to a directory of its own first (cp -rL)");
  }
  return {};
}

Result<int64_t> read_version(io::Env& env, const std::string& directory) {
  const auto applied = LATHE_TRY(read_applied(env, delta::Paths(directory)));
  return applied ? applied->version : 0;
}

}  // namespace lathe::history
