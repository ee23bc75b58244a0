#include "optim/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <mutex>

#include "optim/apollo.h"
#include "optim/factors.h"

namespace lathe::optim {

using kernels::Update;
using kernels::UpdateStats;
using weights::Part;

namespace {

// Elements of a tile: its gradient, moments and weights stay in the second-level cache.
constexpr int64_t kTileElements = 256 * 1024;

// First and second moments of plain AdamW, fp32, shaped like their tensor.
struct AdamState {
  at::Tensor m, v;
  int64_t updates = 0;
};

// AdamW's direction of n elements; moves the moments on. ε as in torch.optim.AdamW: added to the corrected root.
void adam_direction(float* direction, const float* g, float* m, float* v, int64_t n, const OptimizerConfig& c, int64_t t) {
  const auto beta1 = static_cast<float>(c.beta1), beta2 = static_cast<float>(c.beta2), epsilon = static_cast<float>(c.epsilon);
  const auto correction1 = static_cast<float>(1 / (1 - std::pow(c.beta1, static_cast<double>(t))));
  const auto correction2 = static_cast<float>(1 / (1 - std::pow(c.beta2, static_cast<double>(t))));
  for (int64_t i = 0; i < n; ++i) {
    m[i] = beta1 * m[i] + (1 - beta1) * g[i];
    v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
    direction[i] = m[i] * correction1 / (std::sqrt(v[i] * correction2) + epsilon);
  }
}

// W <- round(W - step U - decay W) for elements first .. of a part, U in the dtype of `u`.
UpdateStats apply(const Part& part, int64_t first, int64_t n, const at::Tensor& u, const Update& update) {
  if (part.data.scalar_type() == at::kFloat) {
    return kernels::update_fp32(part.data.data_ptr<float>() + first, u.const_data_ptr<float>(), n, update);
  }
  auto* w = reinterpret_cast<uint16_t*>(part.data.data_ptr<at::BFloat16>()) + first;
  if (u.scalar_type() == at::kFloat) return kernels::update_bf16(w, u.const_data_ptr<float>(), first, n, update);
  return kernels::update_bf16(w, reinterpret_cast<const uint16_t*>(u.const_data_ptr<at::BFloat16>()), first, n, update);
}

double squared_norm(const at::Tensor& t) { return t.to(at::kFloat).square().sum(at::kDouble).item<double>(); }

}  // namespace

// One part of a matrix parameter, with its gradient and what will be done with it.
struct MatrixStep {
  const Part* part;
  PartGradient gradient;
  ApolloStep apollo;  // of sgd and adamw, only gradient_norm is set
};

struct VectorStep {
  const weights::Parameter* parameter;
  at::Tensor gradient;
  double norm;
};

struct ProposalData {
  double learning_rate = 0;
  std::vector<MatrixStep> matrices;
  std::vector<VectorStep> vectors;
};

struct Optimizer::State {
  std::vector<ApolloState> apollo;  // by part id
  std::vector<AdamState> adam;      // by part id; of 1-D parameters at the id of their first part
};

Proposal::Proposal() = default;
Proposal::Proposal(std::unique_ptr<ProposalData> data) : data_(std::move(data)) {}
Proposal::~Proposal() = default;
Proposal::Proposal(Proposal&&) noexcept = default;
Proposal& Proposal::operator=(Proposal&&) noexcept = default;

Result<Method> parse_method(std::string_view name) {
  for (const Method method : {Method::kApolloMini, Method::kApollo, Method::kAdamW, Method::kSgd}) {
    if (method_name(method) == name) return method;
  }
  return invalid_argument("optimizer '" + std::string(name) + "' is not known; known are apollo_mini, apollo, adamw and sgd");
}

std::string_view method_name(Method method) {
  switch (method) {
    case Method::kApolloMini: return "apollo_mini";
    case Method::kApollo: return "apollo";
    case Method::kAdamW: return "adamw";
    case Method::kSgd: return "sgd";
  }
  return "";
}

Status OptimizerConfig::validate() const {
  const auto require = [](bool holds, const char* what) { return holds ? Status() : Status(invalid_argument(what)); };
  LATHE_TRY(require(rank >= 1, "optimizer rank must be at least 1"));
  LATHE_TRY(require(refresh_every >= 1, "optimizer refresh_every must be at least 1"));
  LATHE_TRY(require(beta1 >= 0 && beta1 < 1, "optimizer beta1 must be in [0, 1)"));
  LATHE_TRY(require(beta2 >= 0 && beta2 < 1, "optimizer beta2 must be in [0, 1)"));
  LATHE_TRY(require(epsilon > 0 && std::isfinite(epsilon), "optimizer epsilon must be positive"));
  LATHE_TRY(require(weight_decay >= 0 && weight_decay <= 1, "weight_decay must be in [0, 1]"));
  return require(growth_limit == 0 || (growth_limit > 1 && std::isfinite(growth_limit)), "growth_limit must be above 1, or 0 for none");
}

Optimizer::Optimizer(const weights::WeightStore& store, OptimizerConfig config)
    : store_(store), config_(config), state_(std::make_unique<State>()) {
  state_->apollo.resize(store.part_count());
  state_->adam.resize(store.part_count());
}

Optimizer::~Optimizer() = default;

Result<Proposal> Optimizer::propose(weights::GradientSet gradients, double learning_rate) const {
  const at::NoGradGuard no_grad;
  if (!(learning_rate > 0) || !std::isfinite(learning_rate)) return invalid_argument("the learning rate must be a positive number");
  const bool apollo = config_.method == Method::kApolloMini || config_.method == Method::kApollo;
  auto data = std::make_unique<ProposalData>();
  data->learning_rate = learning_rate;
  for (const weights::Parameter& parameter : store_.parameters()) {
    const auto not_finite = [&](const std::string& name) {
      return invalid_argument("the gradient of " + name + " is not finite; the update was dropped");
    };
    if (const at::Tensor& g = gradients.vectors[parameter.id]; g.defined()) {
      const double norm = std::sqrt(squared_norm(g));
      if (!std::isfinite(norm)) return not_finite(parameter.name);
      if (norm > 0) data->vectors.push_back({&parameter, g, norm});
    }
    const weights::MatrixGradient& matrix = gradients.matrices[parameter.id];
    if (matrix.empty() || (!config_.train_embeddings && parameter.vocabulary)) continue;
    const Factors factors = gather(matrix, parameter);
    for (const Part& part : parameter.parts) {
      PartGradient gradient(factors, part);
      const double norm = std::sqrt(gradient.squared_norm());
      if (!std::isfinite(norm)) return not_finite(part.name);
      if (norm == 0) continue;
      ApolloStep step{.gradient_norm = norm};
      if (apollo) step = apollo_step(gradient, norm, state_->apollo[part.id], config_, static_cast<uint32_t>(part.id));
      data->matrices.push_back({&part, std::move(gradient), std::move(step)});
    }
  }
  return Proposal(std::move(data));
}

namespace {

// Writes what multiplies the learning rate, for rows [begin, begin + count), into `u`.
void direction_tile(const MatrixStep& step, AdamState& adam, const OptimizerConfig& config, int64_t begin, int64_t count, at::Tensor& u) {
  step.gradient.dense_rows(begin, count, u);
  const at::Tensor& channels = step.apollo.channel_scale;
  if (channels.defined()) u.mul_(step.gradient.tall() ? channels.narrow(0, begin, count).unsqueeze(1) : channels.unsqueeze(0));
  if (config.method == Method::kAdamW) {
    const int64_t first = begin * step.gradient.columns(), n = count * step.gradient.columns();
    adam_direction(u.data_ptr<float>(), u.data_ptr<float>(), adam.m.data_ptr<float>() + first, adam.v.data_ptr<float>() + first, n,
                   config, adam.updates);
  }
}

UpdateStats commit_matrix(const MatrixStep& step, AdamState& adam, const OptimizerConfig& config, const Update& update) {
  const int64_t a = step.gradient.rows(), b = step.gradient.columns();
  const bool wide = config.method == Method::kAdamW;
  const auto options = at::TensorOptions().dtype(wide ? at::kFloat : step.gradient.dtype());
  const int64_t tile_rows = std::max<int64_t>(1, kTileElements / b);
  UpdateStats total;
  std::mutex mutex;  // guards total
  at::parallel_for(0, (a + tile_rows - 1) / tile_rows, 1, [&](int64_t first_tile, int64_t last_tile) {
    const at::NoGradGuard no_grad;
    at::Tensor buffer = at::empty({tile_rows, b}, options);
    UpdateStats stats;
    for (int64_t tile = first_tile; tile < last_tile; ++tile) {
      const int64_t begin = tile * tile_rows, count = std::min(tile_rows, a - begin);
      at::Tensor u = buffer.narrow(0, 0, count);
      direction_tile(step, adam, config, begin, count, u);
      stats += apply(*step.part, begin * b, count * b, u, update);
    }
    const std::lock_guard hold(mutex);
    total += stats;
  });
  return total;
}

void prepare_adam(AdamState& adam, at::IntArrayRef shape) {
  if (!adam.m.defined()) {
    adam.m = at::zeros(shape, at::kFloat);
    adam.v = at::zeros(shape, at::kFloat);
  }
  ++adam.updates;
}

}  // namespace

CommitReport Optimizer::commit(Proposal proposal) {
  const at::NoGradGuard no_grad;
  LATHE_CHECK(proposal.data_ != nullptr);
  const ProposalData& data = *proposal.data_;
  const auto rate = static_cast<float>(data.learning_rate);
  const auto update_of = [&](const Part& part, double scale, double decay) {
    return Update{.step = static_cast<float>(data.learning_rate * scale), .decay = static_cast<float>(decay), .rounding = config_.rounding,
                  .seed = config_.seed, .stream = static_cast<uint32_t>(part.id), .update_index = static_cast<uint32_t>(updates_)};
  };
  CommitReport report;
  double squared = 0;
  for (const MatrixStep& step : data.matrices) {
    const Part& part = *step.part;
    AdamState& adam = state_->adam[part.id];
    if (config_.method == Method::kAdamW) prepare_adam(adam, part.data.sizes());
    const bool apollo = config_.method == Method::kApolloMini || config_.method == Method::kApollo;
    const Update update = update_of(part, apollo ? step.apollo.scale : 1, rate * config_.weight_decay);
    const UpdateStats stats = commit_matrix(step, adam, config_, update);
    if (apollo) state_->apollo[part.id] = step.apollo.next;
    report.tensors.push_back({part.name, step.apollo.gradient_norm, std::sqrt(stats.intended_squared) / rate, step.apollo.limiter, stats});
    squared += step.apollo.gradient_norm * step.apollo.gradient_norm;
    report.total += stats;
  }
  for (const VectorStep& step : data.vectors) {
    // A fused bias is one vector here; its parts follow each other in memory.
    AdamState& adam = state_->adam[step.parameter->parts.front().id];
    prepare_adam(adam, step.gradient.sizes());
    at::Tensor u = step.gradient.contiguous().clone();
    if (config_.method != Method::kSgd) {
      adam_direction(u.data_ptr<float>(), u.data_ptr<float>(), adam.m.data_ptr<float>(), adam.v.data_ptr<float>(), u.numel(), config_, adam.updates);
    }
    for (const Part& part : step.parameter->parts) {
      const UpdateStats stats = apply(part, 0, part.rows, u.narrow(0, part.row_begin, part.rows), update_of(part, 1, 0));
      report.tensors.push_back({part.name, step.norm, std::sqrt(stats.intended_squared) / rate, 1, stats});
      report.total += stats;
    }
    squared += step.norm * step.norm;
  }
  report.gradient_norm = std::sqrt(squared);
  ++updates_;
  return report;
}

int64_t Optimizer::state_bytes() const {
  int64_t bytes = 0;
  const auto add = [&](const at::Tensor& t) { bytes += t.defined() ? static_cast<int64_t>(t.nbytes()) : 0; };
  for (const ApolloState& state : state_->apollo) add(state.m), add(state.v);
  for (const AdamState& state : state_->adam) add(state.m), add(state.v);
  return bytes;
}

}  // namespace lathe::optim
