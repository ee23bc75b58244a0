// History: the versions of a model directory, and the weights of each.
//
// The shards hold the newest version; each delta file leads from one version to the next, in both directions, so that
// an older version is the newest with deltas taken back. The chain of delta files is the history: nothing else lists
// it.
// Threads: open() under lock_history(), which must be held as long as the history is used; then any.
// Memory: the tiles' table of every delta that was looked at.
// Durability: recover() leaves a directory whose shards, state and chain agree, durably.
// Format page: docs/formats/directory.md
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "delta/delta_reader.h"
#include "delta/delta_writer.h"
#include "delta/source.h"
#include "history/applied.h"
#include "history/apply.h"

namespace lathe::history {

// What a version is, beside its weights: travels with its delta as the attachment "version.json".
struct VersionRecord {
  std::string kind;                 // learn, train, import, rollback, redo
  std::string note;                 // for people
  std::optional<int64_t> restores;  // of a rollback or redo: whose weights these are
  std::string lesson;               // the one job that made it, if it was one
};
std::string to_json(const VersionRecord& record);
VersionRecord parse_record(const std::string& json);  // of anything else: an empty one

inline constexpr const char* kRecordName = "version.json";
inline constexpr const char* kOptimizerName = "optimizer.safetensors";

struct DeltaFile {
  int64_t from = 0, to = 0;
  friend bool operator==(const DeltaFile&, const DeltaFile&) = default;
};

struct Chain {
  std::vector<DeltaFile> deltas;  // oldest first, each beginning where the one before ends
  std::vector<DeltaFile> merged;  // what a longer delta of the chain replaces; to be removed
};

// From the names alone. kCorruption, naming it, if a file is missing between two.
Result<Chain> read_chain(io::Env& env, const delta::Paths& paths);

// Puts a directory in order: finishes what a crash interrupted, or removes what it left. To be called under
// lock_history() before anything is read. Nothing if the directory has no history. Idempotent.
Result<std::optional<Applied>> recover(io::Env& env, const std::string& directory, const ApplyOptions& options = {});

// What an error of recover() means to one who may only read: kUnavailable if it was write access that lacked.
Error unwritable(const std::string& directory, const Error& error);

class VersionSource;

class History {
 public:
  // Of a directory in order: recover(), and where there is no history, version 0 is what is there.
  static Result<History> open(io::Env& env, const std::string& directory, const ApplyOptions& options = {});

  // For those who read, under lock_history_to_read(): nothing, and nothing created, if there is no history yet. What a
  // crash left is finished, or kUnavailable if that needs write access which this process does not have.
  static Result<std::optional<History>> open_to_read(io::Env& env, const std::string& directory,
                                                     const ApplyOptions& options = {});

  const delta::Paths& paths() const { return paths_; }
  const Applied& head() const { return *head_; }
  const std::vector<DeltaFile>& deltas() const { return deltas_; }
  std::vector<int64_t> versions() const;  // ascending; the last is the head's
  // The delta that leads to `version`; null for the first.
  const DeltaFile* leading_to(int64_t version) const;

  // Opened once. Errors name the file.
  Result<const delta::DeltaReader*> reader(const DeltaFile& delta) const;

  // The weights of a version; kNotFound, naming those there are. The history must outlive it.
  Result<VersionSource> at(int64_t version) const;

 private:
  History(io::Env& env, delta::Paths paths) : env_(&env), paths_(std::move(paths)) {}
  Status set(Applied head, std::vector<DeltaFile> deltas);

  io::Env* env_;
  delta::Paths paths_;
  std::unique_ptr<Applied> head_;
  std::vector<DeltaFile> deltas_;
  mutable std::map<int64_t, std::unique_ptr<delta::DeltaReader>> readers_;  // by from
};

// A version's weights: the shards' tiles with deltas taken back.
class VersionSource final : public delta::WeightSource {
 public:
  const delta::WeightState& state() const { return state_; }
  int64_t version() const { return version_; }

  Result<Hash128> hash(delta::TileId id, std::span<std::byte> scratch) const override;
  Result<std::span<const std::byte>> read(delta::TileId id, std::span<std::byte> scratch) const override;

 private:
  friend class History;
  VersionSource(delta::FileSource shards, int64_t version, delta::WeightState state)
      : shards_(std::move(shards)), version_(version), state_(std::move(state)) {}

  delta::FileSource shards_;
  int64_t version_;
  delta::WeightState state_;
  std::vector<const delta::DeltaReader*> back_;  // newest first
};

}  // namespace lathe::history
