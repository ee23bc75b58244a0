#include "train/dataset.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/hash.h"
#include "train/dpo.h"
#include "train/supervised.h"

namespace lathe::train {

Status ObjectiveSettings::validate() const {
  if (!(beta > 0) || !std::isfinite(beta)) return invalid_argument("beta must be a positive number");
  if (!(kl >= 0) || !std::isfinite(kl)) return invalid_argument("kl must be 0 (off) or a positive number");
  if (kl_tokens < 1) return invalid_argument("kl_tokens must be at least 1");
  if (preferences && kl > 0) {
    return invalid_argument("kl cannot be combined with preferences: beta already holds the model to DPO's reference");
  }
  return {};
}

Dataset::Dataset(std::vector<data::Example> examples, ObjectiveSettings settings)
    : examples_(std::move(examples)), settings_(settings) {
  LATHE_CHECK(examples_.size() % per_item() == 0);
}

std::vector<int64_t> Dataset::tokens_per_item() const {
  std::vector<int64_t> tokens(items(), 0);
  for (size_t i = 0; i < examples_.size(); ++i)
    tokens[i / per_item()] += static_cast<int64_t>(examples_[i].tokens.size());
  return tokens;
}

std::string Dataset::hash() const {
  Blake3 hash;
  for (const data::Example& example : examples_) {
    const uint64_t size = example.tokens.size();
    hash.update(std::as_bytes(std::span(&size, 1)));
    hash.update(std::as_bytes(std::span(example.tokens)));
    hash.update(std::as_bytes(std::span(example.weights)));
  }
  return hash.finish().hex();
}

Dataset Dataset::split_off(std::span<const int64_t> items) {
  LATHE_CHECK(log_reference_.empty() && references_.empty());
  std::vector<data::Example> off, kept;
  for (size_t i = 0; i < examples_.size(); ++i) {
    const bool goes = std::find(items.begin(), items.end(), static_cast<int64_t>(i) / per_item()) != items.end();
    (goes ? off : kept).push_back(std::move(examples_[i]));
  }
  examples_ = std::move(kept);
  return {std::move(off), settings_};
}

Status Dataset::take_references(const Trainer& trainer, std::span<const std::vector<int64_t>> batches,
                                const StepOptions& options, const std::function<bool(int64_t items)>& go_on) {
  if (!needs_references()) return {};
  log_reference_.clear();
  references_.clear();
  size_t begin = 0;
  for (const std::vector<int64_t>& batch : batches) {
    const std::span<const data::Example> examples(examples_.data() + begin, batch.size() * per_item());
    if (settings_.preferences) {
      const std::vector<double> log_pi = LATHE_TRY(trainer.answer_log_probabilities(examples, options));
      log_reference_.insert(log_reference_.end(), log_pi.begin(), log_pi.end());
    } else {
      for (auto& one : LATHE_TRY(trainer.take_references(examples, settings_.kl_tokens, options)))
        references_.push_back(std::move(one));
    }
    begin += examples.size();
    if (!go_on(static_cast<int64_t>(begin) / per_item())) {
      return Error{Code::kCancelled, "stopped while the reference was taken"};
    }
  }
  LATHE_CHECK(begin == examples_.size());
  return {};
}

std::vector<data::Example> Dataset::examples_of(std::span<const int64_t> items) const {
  std::vector<data::Example> examples;
  for (const int64_t item : items) {
    const auto first = examples_.begin() + item * per_item();
    examples.insert(examples.end(), first, first + per_item());
  }
  return examples;
}

Lesson Dataset::lesson(std::span<const int64_t> items) const {
  return make(items, /*with_kl=*/settings_.kl > 0);
}

Lesson Dataset::evaluation(std::span<const int64_t> items) const {
  return make(items, /*with_kl=*/false);
}

Lesson Dataset::make(std::span<const int64_t> items, bool with_kl) const {
  Lesson lesson{.examples = examples_of(items)};
  std::vector<double> log_reference;
  std::vector<ReferenceDistributions> references;
  for (const int64_t item : items) {
    for (int64_t i = item * per_item(); i < (item + 1) * per_item(); ++i) {
      if (settings_.preferences) log_reference.push_back(log_reference_.at(i));
      if (with_kl) references.push_back(references_.at(i));
    }
  }
  if (settings_.preferences) {
    lesson.objective = std::make_unique<Dpo>(settings_.beta, std::move(log_reference));
  } else if (with_kl) {
    lesson.objective = std::make_unique<WithKl>(kSupervised, settings_.kl, join(references));
  } else {
    lesson.objective = std::make_unique<Supervised>();
  }
  return lesson;
}

}  // namespace lathe::train
