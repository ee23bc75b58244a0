// What objectives need to know about the weights before they change.
#include <ATen/ATen.h>

#include "train/backward.h"
#include "train/batch.h"
#include "train/dpo.h"
#include "train/guarded.h"
#include "train/loss.h"
#include "train/trainer.h"

namespace lathe::train {

Result<std::vector<double>> Trainer::answer_log_probabilities(std::span<const data::Example> examples,
                                                              const StepOptions& options) const {
  LATHE_TRY(data::validate(examples, model_.config().vocab_size, model_.config().max_positions));
  return guarded("taking the reference", [&]() -> Result<std::vector<double>> {
    const Batch batch = pack(examples, options.context);
    const LiveForward live =
        forward_live(model_, batch, pass_limits(options, model_.options().device()).chunk_rows, /*keep_layers=*/false);
    const GradedRows graded = graded_rows(batch);
    const at::Tensor log_pi = train::answer_log_probabilities(
        graded, target_log_probabilities(model_, graded, live.inputs.back()), static_cast<int64_t>(examples.size()));
    const auto* begin = log_pi.const_data_ptr<double>();
    return std::vector<double>(begin, begin + log_pi.numel());
  });
}

Result<std::vector<ReferenceDistributions>> Trainer::take_references(std::span<const data::Example> examples, int64_t k,
                                                                     const StepOptions& options) const {
  LATHE_TRY(data::validate(examples, model_.config().vocab_size, model_.config().max_positions));
  return guarded("taking the reference", [&]() -> Result<std::vector<ReferenceDistributions>> {
    const Batch batch = pack(examples, options.context);
    const LiveForward live =
        forward_live(model_, batch, pass_limits(options, model_.options().device()).chunk_rows, /*keep_layers=*/false);
    const GradedRows graded = graded_rows(batch);
    return split(train::take_references(model_, graded, live.inputs.back(), k), graded,
                 static_cast<int64_t>(examples.size()));
  });
}

}  // namespace lathe::train
