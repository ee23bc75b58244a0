// RunState: an unfinished training run on disk, so that it continues bit-identically after a kill at any moment.
//
// Everything lies in MODEL_DIR/.lathe/train; the model directory itself changes only when the run is over, by
// history::sync(). A saved state is two files in one of three slots (weights, optimizer state) and run.json, which
// names the slot: writing run.json is the moment at which the new state replaces the old one.
//
// Threads: one per directory; the caller holds the directory's lock.
// Durability: save() and discard() are durable on return; a stop before that leaves the state before.
// Format page: docs/formats/training_state.md
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/env.h"
#include "optim/optimizer.h"
#include "weights/weight_store.h"

namespace lathe::train {

// What one step did.
struct StepRecord {
  int64_t step = 0;  // counts from 1
  double epoch = 0;  // times through the data, this step included
  double loss = 0;   // before the update
  double learning_rate = 0;
  double gradient_norm = 0;
  double update_norm = 0;       // of the intended change, over the learning rate
  double limiter = 1;           // the most that the limiter divided a tensor's update by
  int64_t limited = 0;          // tensors that it held back
  double changed_fraction = 0;  // of the weights
  double realised = 1;          // realised / intended update
  int64_t tokens = 0;
  int64_t graded_tokens = 0;
  double seconds = 0;
};

struct Evaluation {
  int64_t step = 0;  // steps done before it
  double loss = 0;
};

struct RunState {
  int64_t step = 0;                             // steps done
  std::map<std::string, std::string> settings;  // all that the result depends on
  std::vector<StepRecord> steps;
  std::vector<Evaluation> evaluations;
  std::string slot;       // where the weights and the optimizer state of `step` lie
  std::string best_slot;  // and those of the best evaluation, where it matters; else empty
  std::string installs;   // weights_hash() of the result, set just before it goes into the model directory
};

class RunDirectory {
 public:
  RunDirectory(io::Env& env, const std::string& model_directory);

  // Nothing if there is no unfinished run. kCorruption if run.json cannot be read as one.
  Result<std::optional<RunState>> read() const;

  // Makes the state durable, in a slot that the state on disk does not use, and sets state.slot; with `best` also
  // state.best_slot.
  Status save(RunState& state, const weights::WeightStore& store, const optim::Optimizer& optimizer, bool best) const;
  // run.json alone: `state` names slots that are durable already.
  Status save_record(const RunState& state) const;

  // Reads a slot's weights into the store. Hold the Gate exclusively.
  Status restore_weights(const std::string& slot, weights::WeightStore& store) const;
  Status restore_optimizer(const std::string& slot, optim::Optimizer& optimizer) const;

  // Removes the run. Its record goes first, so that what an interruption leaves is not a run, only garbage.
  Status discard() const;

  const std::string& path() const { return path_; }

 private:
  std::string slot_path(const std::string& slot) const { return path_ + "/" + slot; }
  std::string record_path() const { return path_ + "/run.json"; }

  io::Env& env_;
  std::string path_;
};

// BLAKE3 over the names and bytes of all weights, hexadecimal: which model a run began with.
Result<std::string> weights_hash(const weights::WeightStore& store);

}  // namespace lathe::train
