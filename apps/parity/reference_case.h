// A reference case made by transformers, and how far this build is from it. Format page: docs/formats/golden.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "data/example.h"
#include "io/env.h"
#include "model/model.h"
#include "train/backward.h"
#include "train/batch.h"
#include "train/trainer.h"

namespace lathe::parity {

using Tensors = std::map<std::string, at::Tensor>;

// Every tensor of a safetensors file, on the CPU, floating ones in fp32.
Result<Tensors> read_tensors(io::Env& env, const std::string& path);

// ‖ours - theirs‖ / ‖theirs‖.
double relative_error(const at::Tensor& ours, const at::Tensor& theirs);

struct Comparison {
  double logits = 0;                              // largest absolute difference
  double logits_relative = 0;                     // relative_error
  double loss = 0;                                // absolute difference
  Tensors gradients;                              // ours, fp64, by checkpoint tensor
  std::map<std::string, double> gradient_errors;  // relative_error of each
};

class ReferenceCase {
 public:
  // All must outlive the case. `path`: how gradients are collected on their way.
  ReferenceCase(const model::LoadedModel& loaded, const Tensors& reference, const train::PassLimits& limits,
                train::GradientPath path);

  Comparison full() const { return compare("full", 0); }
  Comparison frozen() const { return compare("frozen", reference_.at("frozen.context").item<int64_t>()); }
  // How many of the reference's greedy tokens come out again, of how many.
  std::pair<int64_t, int64_t> greedy() const;

 private:
  // Rows `context` .. of every sequence with gradient, those before as constants; `kind` names the reference's tensors.
  Comparison compare(const std::string& kind, int64_t context) const;
  // The loss, and gradients by checkpoint tensor.
  std::pair<double, Tensors> backward(const train::Batch& batch) const;
  void compare_logits(const std::string& kind, int64_t context, Comparison& result) const;

  const model::Model& model_;
  const weights::WeightStore& store_;
  const Tensors& reference_;
  train::PassLimits limits_;
  train::GradientPath path_;
  std::vector<data::Example> examples_;
};

}  // namespace lathe::parity
