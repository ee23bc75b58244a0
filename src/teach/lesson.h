// Lesson: examples to be taught until they are known, and what became of that.
//
// Threads: values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "data/example.h"
#include "store/store.h"
#include "train/trainer.h"

namespace lathe::teach {

enum class State {
  kQueued,
  kRunning,
  kSucceeded,    // the loss fell
  kNotLearned,   // steps were taken, and the loss did not fall
  kNothingToDo,  // the loss was low enough already: no step was taken
  kCancelled,    // asked to end, or ended by a rollback; finished steps stay
  kRefused,      // by a policy: nothing has changed
  kFailed,
  kLost,         // it was learned, and its versions are gone with the process that had them in memory
  kInterrupted,  // the process ended while it was queued or running
};
// "succeeded", "not_learned", ...: what the store and the protocol call it.
std::string_view state_name(State state);

struct Lesson {
  std::string id;
  std::vector<data::Example> examples;
  train::StepOptions options;
  int64_t steps = 1;
  double until_loss = 0;
  bool report_tensors = false;  // of the last step
  bool durable = false;         // its outcome is told when it is durable, not before
  std::string relearns = {};    // the lost job that this one repeats
};

struct Outcome {
  State state = State::kFailed;
  std::optional<Error> error = {};  // why not, with its code
  store::Learned learned = {};      // steps that were finished stay, whatever the state
  std::vector<store::TensorChange> tensors = {};
};

}  // namespace lathe::teach
