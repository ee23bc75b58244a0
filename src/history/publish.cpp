#include "history/publish.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "history/export.h"

namespace lathe::history {
namespace {

using Json = nlohmann::json;

constexpr const char* kIndex = "model.safetensors.index.json";

std::string generation_name(int64_t version) {
  char name[32];
  std::snprintf(name, sizeof name, "v%010ld", static_cast<long>(version));
  return name;
}

// model-00001-of-00003.safetensors -> model-v7-00001-of-00003.safetensors
std::string versioned(const std::string& shard, int64_t version) {
  const size_t at = std::min(shard.find('-'), shard.rfind(".safetensors"));
  return shard.substr(0, at) + "-v" + std::to_string(version) + shard.substr(std::min(at, shard.size()));
}

class Publisher {
 public:
  Publisher(io::Env& env, const History& history, std::string link, const PublishOptions& options)
      : env_(env),
        history_(history),
        link_(std::move(link)),
        generations_(link_ + delta::kGenerations),
        name_(generation_name(history.head().version)),
        options_(options) {}

  Result<PublishReport> run() {
    LATHE_TRY(refuse_what_is_no_link());
    LATHE_TRY(io::create_directory_durably(env_, generations_));
    LATHE_TRY(remove_litter());
    report_.version = history_.head().version;
    report_.directory = generations_ + "/" + name_;
    if (!LATHE_TRY(env_.exists(report_.directory))) LATHE_TRY(make_generation());
    // Also of a generation that was there: whoever made it may have died before its name was durable.
    LATHE_TRY(env_.sync_directory(generations_));
    LATHE_TRY(flip());
    LATHE_TRY(remove_old());
    return std::move(report_);
  }

 private:
  Status refuse_what_is_no_link() {
    const auto found = env_.stat(link_);
    if (!found.ok()) return found.error().code == Code::kNotFound ? Status() : Status(found.error());
    if (found->is_symlink) return {};
    return invalid_argument(link_ + " exists and is not a symbolic link; name a path that does not exist yet");
  }

  Status remove_litter() {
    for (const std::string& name : LATHE_TRY(env_.list(generations_))) {
      if (name.ends_with(delta::kNew)) LATHE_TRY(io::remove_tree(env_, generations_ + "/" + name));
    }
    return io::remove_if_there(env_, link_ + delta::kNew);
  }

  Status make_generation() {
    const std::string temporary = report_.directory + delta::kNew;
    const Status filled = fill(temporary);
    const Status named = filled.ok() ? env_.rename(temporary, report_.directory) : filled;
    if (named.ok()) return {};
    // The failure is what is reported; what cannot be removed now is removed next time.
    [[maybe_unused]] const Status removed = io::remove_tree(env_, temporary);
    return named;
  }

  Status fill(const std::string& directory) {
    LATHE_TRY(env_.create_directories(directory));
    const std::string& model = history_.paths().directory;
    const delta::WeightState& state = history_.head().state;
    const bool single = !LATHE_TRY(env_.exists(model + "/" + kIndex));
    for (const delta::FileState& file : state.files) {
      const std::string name = single ? file.layout.name : versioned(file.layout.name, report_.version);
      LATHE_TRY(add_shard(model + "/" + file.layout.name, directory + "/" + name));
    }
    LATHE_TRY(copy_companions(env_, model, directory));
    if (!single) LATHE_TRY(write_index(model, directory));
    return env_.sync_directory(directory);
  }

  Status add_shard(const std::string& shard, const std::string& name) {
    if (!options_.copy) {
      const Status linked = env_.link(shard, name);
      if (linked.ok()) {
        ++report_.linked;
        return {};
      }
      // Another file system, or one without hard links.
      const int reason = linked.error().native;
      if (reason != EXDEV && reason != EPERM && reason != EMLINK && reason != EOPNOTSUPP) return linked;
    }
    ++report_.copied;
    return io::copy_file(env_, shard, name);
  }

  Status write_index(const std::string& model, const std::string& directory) {
    const std::string text = LATHE_TRY(io::read_text(env_, model + "/" + kIndex));
    Json index = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
      return corruption(model + "/" + kIndex + " has no weight_map");
    }
    for (auto& [tensor, file] : index["weight_map"].items()) {
      if (file.is_string()) file = versioned(file.get<std::string>(), report_.version);
    }
    return io::write_text_atomically(env_, directory + "/" + kIndex, index.dump(2));
  }

  Status flip() {
    const std::string parent = io::parent_directory(link_);
    const std::string target = std::filesystem::path(generations_).filename().string() + "/" + name_;
    const auto there = env_.stat(link_);
    if (!there.ok() || LATHE_TRY(env_.read_link(link_)) != target) {
      LATHE_TRY(env_.symlink(target, link_ + delta::kNew));
      LATHE_TRY(env_.rename(link_ + delta::kNew, link_));
    }
    return env_.sync_directory(parent);
  }

  Status remove_old() {
    std::vector<std::string> old = LATHE_TRY(env_.list(generations_));
    std::erase_if(old, [&](const std::string& name) { return !name.starts_with('v') || name >= name_; });
    const auto surplus = static_cast<int64_t>(old.size()) - (options_.keep - 1);
    for (int64_t i = 0; i < surplus; ++i) {
      // Renamed first to what recovery removes, so that a crash leaves no generation with files missing.
      const std::string path = generations_ + "/" + old[static_cast<size_t>(i)];
      LATHE_TRY(env_.rename(path, path + delta::kNew));
      LATHE_TRY(env_.sync_directory(generations_));
      LATHE_TRY(io::remove_tree(env_, path + delta::kNew));
      ++report_.removed;
    }
    return {};
  }

  io::Env& env_;
  const History& history_;
  const std::string link_, generations_, name_;
  const PublishOptions options_;
  PublishReport report_;
};

}  // namespace

Result<PublishReport> publish(io::Env& env, const History& history, const std::string& link,
                              const PublishOptions& options) {
  if (options.keep < 1) return invalid_argument("at least one generation must be kept");
  std::string path = link;
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return Publisher(env, history, path, options).run();
}

}  // namespace lathe::history
