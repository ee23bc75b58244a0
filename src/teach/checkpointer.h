// Checkpointer: makes the live weights durable, and brings live weights and directory back to what they were.
//
// Threads: the teaching thread, which is the only writer: the weights are still while their tiles are hashed and the
// changed ones read, and serving continues.
// Durability: what sync(), roll_back() and redo() return is durable, and the store marks as durable exactly the versions
// directory holds that they are.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "history/sync.h"
#include "io/env.h"
#include "store/store.h"
#include "teach/events.h"
#include "teach/holder.h"
#include "teach/jobs.h"
#include "teach/versions.h"
#include "weights/weight_store.h"

namespace lathe::teach {

class Checkpointer {
 public:
  struct Options {
    std::string directory;
    bool materialize = false;  // replace shards that are symbolic links by copies, instead of refusing to sync
  };

  // References outlive the object.
  Checkpointer(weights::WeightStore& weights, Holder& holder, store::Store& store, io::Env& env, Versions& versions,
               Events& events, Options options)
      : weights_(weights),
        holder_(holder),
        store_(store),
        env_(env),
        versions_(versions),
        events_(events),
        options_(std::move(options)) {}

  // All that is live and not durable becomes one version on disk. If it is durable already, the result is that of the
  // sync that made it so, as far as this process knows.
  Result<Moved> sync();
  // Syncs, so that it can itself be undone; then the directory gets the older weights as a new version, and the live
  // weights follow. If they cannot be read, nothing live changes: the live weights become a version after the
  // directory's, which the next sync makes durable, and the error says so.
  Result<Moved> restore(Command::Kind kind, std::optional<int64_t> target);

  // A change between the holder's begin and end went wrong; `whole`: the weights hold all of it. They are made what the
  // directory has, or, if even that fails, are torn (of no version). Versions that this takes are told as Lost.
  void take_back(bool whole);
  // Torn weights are read from the directory again. Nothing to do is a success.
  Status repair();

  // The store's versions as the directory has them: of a process that was killed, some may be lost. Before anything is
  // taught.
  Result<store::Lost> settle();

 private:
  Result<std::vector<int64_t>> on_disk() const;
  Status note_durable();
  void lose();
  Result<history::SyncReport> move_directory(Command::Kind kind, std::optional<int64_t> target);
  Status follow();
  Error keep(const Error& why);

  weights::WeightStore& weights_;
  Holder& holder_;
  store::Store& store_;
  io::Env& env_;
  Versions& versions_;
  Events& events_;
  const Options options_;
  Synced latest_;  // of the durable version; its figures are 0 if another process made it
};

}  // namespace lathe::teach
