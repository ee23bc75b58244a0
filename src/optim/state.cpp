// Optimizer::state() and restore(): what an optimizer remembers, by name.
#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>

#include "optim/apollo.h"
#include "optim/optimizer.h"

namespace lathe::optim {
namespace {

using weights::Part;

// The shape of a part's moments.
std::vector<int64_t> moment_shape(const Part& part, bool vocabulary, const OptimizerConfig& config) {
  if (part.data.dim() == 1 || !config.apollo()) return part.data.sizes().vec();
  const int64_t a = part.rows, b = part.data.size(1), rank = scaling_of(config, a, b, vocabulary).rank;
  return a >= b ? std::vector<int64_t>{a, rank} : std::vector<int64_t>{rank, b};
}

Result<at::Tensor> take(const OptimizerState& state, const std::string& name, at::ScalarType dtype,
                        at::IntArrayRef shape) {
  const auto found = state.tensors.find(name);
  if (found == state.tensors.end()) return corruption("the optimizer state lacks " + name);
  const at::Tensor& t = found->second;
  if (t.scalar_type() != dtype || t.sizes() != shape) {
    return invalid_argument("the optimizer state's " + name + " has another shape or dtype than this model needs");
  }
  if (!at::isfinite(t).all().item<bool>()) return corruption("the optimizer state's " + name + " is not finite");
  return t;
}

Result<Moments> take_moments(const OptimizerState& state, const Part& part, at::IntArrayRef shape) {
  Moments moments;
  // Copies: the state may be another optimizer's, and Adam's moments change in place.
  const at::TensorOptions place = part.data.options().dtype(at::kFloat);
  moments.m =
      LATHE_TRY(take(state, part.name + ".m", at::kFloat, shape)).to(place, /*non_blocking=*/false, /*copy=*/true);
  moments.v =
      LATHE_TRY(take(state, part.name + ".v", at::kFloat, shape)).to(place, /*non_blocking=*/false, /*copy=*/true);
  moments.updates = LATHE_TRY(take(state, part.name + ".updates", at::kLong, {1})).item<int64_t>();
  moments.norm = LATHE_TRY(take(state, part.name + ".norm", at::kDouble, {1})).item<double>();
  if (moments.updates < 1) return corruption("the optimizer state's " + part.name + ".updates is not positive");
  if (moments.norm < 0) return corruption("the optimizer state's " + part.name + ".norm is negative");
  if (moments.v.min().item<float>() < 0)
    return corruption("the optimizer state's " + part.name + ".v has negative squares");
  return moments;
}

Result<int64_t> parse_updates(const std::string& text) {
  int64_t updates = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), updates);
  if (error != std::errc() || end != text.data() + text.size() || updates < 0) {
    return corruption("the optimizer state counts '" + text + "' updates");
  }
  return updates;
}

}  // namespace

std::map<std::string, std::string> Optimizer::settings() const {
  std::map<std::string, std::string> settings{{"method", std::string(method_name(config_.method))},
                                              {"seed", std::to_string(config_.seed)}};
  if (config_.apollo()) {
    settings["rank"] = std::to_string(config_.projection_rank());
    settings["refresh_every"] = std::to_string(config_.refresh_every);
  }
  settings["official_compat"] = config_.official_compat ? "true" : "false";
  return settings;
}

int64_t Optimizer::full_bytes() const {
  int64_t numbers = 0;
  for (const weights::Parameter& parameter : store_.parameters()) {
    if (parameter.vocabulary && !config_.train_embeddings) continue;
    for (const Part& part : parameter.parts) {
      const bool matrix = part.data.dim() == 2, narrow = part.data.scalar_type() == at::kBFloat16;
      if (config_.rounding == kernels::Rounding::kShadow && narrow) numbers += part.data.numel();
      if (config_.method != Method::kSgd)
        numbers += 2 * c10::multiply_integers(moment_shape(part, parameter.vocabulary, config_));
      if (!config_.apollo() || !matrix) continue;
      const int64_t a = part.rows, b = part.data.size(1);
      numbers += scaling_of(config_, a, b, parameter.vocabulary).rank * std::min(a, b);
    }
  }
  return numbers * static_cast<int64_t>(sizeof(float));
}

OptimizerState Optimizer::state() const {
  OptimizerState state{.settings = settings()};
  state.settings["updates"] = std::to_string(updates_);
  for (const weights::Parameter& parameter : store_.parameters()) {
    for (const Part& part : parameter.parts) {
      if (const at::Tensor& shadow = shadows_[part.id]; shadow.defined()) state.tensors[part.name + ".shadow"] = shadow;
      const Moments& moments = moments_[part.id];
      if (moments.updates == 0) continue;
      state.tensors[part.name + ".m"] = moments.m.cpu();
      state.tensors[part.name + ".v"] = moments.v.cpu();
      state.tensors[part.name + ".updates"] = at::full({1}, moments.updates, at::kLong);
      state.tensors[part.name + ".norm"] = at::full({1}, moments.norm, at::kDouble);
    }
  }
  return state;
}

Status Optimizer::restore(const OptimizerState& state) {
  for (const auto& [name, mine] : settings()) {
    const auto found = state.settings.find(name);
    const std::string theirs = found == state.settings.end() ? "none" : found->second;
    if (theirs != mine) {
      return invalid_argument("the optimizer state was made with " + name + " " + theirs + ", this run has " + mine);
    }
  }
  const auto count = state.settings.find("updates");
  const int64_t updates = LATHE_TRY(parse_updates(count == state.settings.end() ? "no" : count->second));
  std::vector<Moments> restored(moments_.size());
  std::vector<at::Tensor> shadows(shadows_.size());
  size_t taken = 0;
  for (const weights::Parameter& parameter : store_.parameters()) {
    for (const Part& part : parameter.parts) {
      if (state.tensors.contains(part.name + ".shadow")) {
        const at::Tensor shadow = LATHE_TRY(take(state, part.name + ".shadow", at::kFloat, part.data.sizes()));
        if (config_.rounding == kernels::Rounding::kShadow) shadows[part.id] = shadow.clone();
        ++taken;
      }
      if (!state.tensors.contains(part.name + ".m")) continue;
      restored[part.id] = LATHE_TRY(take_moments(state, part, moment_shape(part, parameter.vocabulary, config_)));
      taken += 4;
    }
  }
  if (taken != state.tensors.size()) {
    for (const auto& [name, tensor] : state.tensors) {
      const std::string part = name.substr(0, name.rfind('.'));
      if (!store_.find_part(part) || (!name.ends_with(".shadow") && !state.tensors.contains(part + ".m"))) {
        return invalid_argument("the optimizer state has " + name + ", which this model does not have");
      }
    }
    return corruption("the optimizer state has tensors that are not known");
  }
  moments_ = std::move(restored);
  shadows_ = std::move(shadows);
  updates_ = updates;
  return {};
}

}  // namespace lathe::optim
