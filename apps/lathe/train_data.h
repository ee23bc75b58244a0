// The data of a `lathe train`: what it learns from and what it is judged by.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "base/result.h"
#include "model/config.h"
#include "text/text.h"
#include "train/run.h"
#include "train_options.h"

namespace lathe::cli {

struct TrainData {
  std::optional<train::Dataset> training, evaluation;  // the second, if there is one
  std::map<std::string, std::string> hashes;           // of what they were made of

  const train::Dataset* evaluation_set() const { return evaluation ? &*evaluation : nullptr; }
  train::Dataset* evaluation_set() { return evaluation ? &*evaluation : nullptr; }
};

// Reads and tokenises. Refuses, by file and line, what cannot be learned by this model.
Result<TrainData> read_train_data(const TrainOptions& options, const train::RunSettings& settings,
                                  const text::Text& text, const model::ModelConfig& config);

}  // namespace lathe::cli
