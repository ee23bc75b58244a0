// `lathe train --dry-run`: what a run would train, and what memory and time it would take.
#pragma once

#include "base/result.h"
#include "train_options.h"

namespace lathe::cli {

// Reads data, config.json and the headers of the shards: no weight, and nothing is written. Refuses what the run would
// refuse before its first step, but for what only the weights can tell. True if it was printed.
Result<bool> dry_run(const TrainOptions& options);

}  // namespace lathe::cli
