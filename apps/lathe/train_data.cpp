#include "train_data.h"

#include "api/training_file.h"

namespace lathe::cli {

Result<TrainData> read_train_data(const TrainOptions& options, const train::RunSettings& settings,
                                  const text::Text& text, const model::ModelConfig& config) {
  const bool preferences = settings.objective.preferences;
  const auto format = preferences ? api::TrainingFormat::kPreferences : api::TrainingFormat::kConversations;
  const auto read = [&](const std::string& path) {
    return api::read_training_file(path, format, text, config.vocab_size, config.max_positions);
  };
  TrainData data;
  api::TrainingFile training = LATHE_TRY(read(options.data));
  data.hashes = {{"data file", training.hash}, {"evaluation set", "none"}};
  data.training.emplace(std::move(training.examples), settings.objective);
  if (!options.evaluation.empty()) {
    api::TrainingFile evaluation = LATHE_TRY(read(options.evaluation));
    data.hashes["evaluation set"] = evaluation.hash;
    data.evaluation.emplace(std::move(evaluation.examples), settings.objective);
  } else if (options.evaluation_fraction > 0) {
    const auto items =
        LATHE_TRY(data::held_out(data.training->items(), options.evaluation_fraction, settings.plan.seed));
    data.hashes["evaluation set"] = std::to_string(options.evaluation_fraction) + " of the data";
    data.evaluation.emplace(data.training->split_off(items));
  }
  // The same file through another tokenizer or template is another data set.
  data.hashes["tokenised data"] = data.training->hash();
  return data;
}

}  // namespace lathe::cli
