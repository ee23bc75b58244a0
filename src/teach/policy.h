// Policy: looks at a proposal before it is written, and may refuse it.
//
// Threads: the teaching thread; requests are served meanwhile, and wait for nothing.
#pragma once

#include "base/result.h"
#include "teach/lesson.h"
#include "train/trainer.h"

namespace lathe::teach {

struct Candidate {
  const Lesson& lesson;
  int64_t step = 0;  // from 0
  const train::StepProposal& proposal;
  const train::Trainer& trainer;  // to evaluate the present weights with
};

class Policy {
 public:
  virtual ~Policy() = default;
  // An error refuses: the proposal is dropped, and the lesson ends with this reason and leaves the weights as they were
  // before its first step.
  virtual Status allow(const Candidate& candidate) = 0;
};

}  // namespace lathe::teach
