#include "optim/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "optim/apollo.h"
#include "optim/part_gradient.h"

namespace lathe::optim {

using kernels::Update;
using kernels::UpdateStats;
using weights::Parameter;
using weights::Part;

// One part of a matrix, with its gradient and how it will be scaled.
struct MatrixStep {
  const Part* part;
  PartRows gradient;
  double norm;        // of the gradient
  ApolloStep apollo;  // of sgd and adamw: scale 1, nothing else
};

struct VectorStep {
  const Part* part;
  at::Tensor gradient;  // fp32
  double norm;
};

struct ProposalData {
  double learning_rate = 0;
  int64_t after_updates = 0;  // the state it was computed from
  std::vector<MatrixStep> matrices;
  std::vector<VectorStep> vectors;
};

Proposal::Proposal() = default;
Proposal::Proposal(std::unique_ptr<ProposalData> data) : data_(std::move(data)) {}
Proposal::~Proposal() = default;
Proposal::Proposal(Proposal&&) noexcept = default;
Proposal& Proposal::operator=(Proposal&&) noexcept = default;

Optimizer::Optimizer(const weights::WeightStore& store, OptimizerConfig config)
    : store_(store), config_(config), moments_(store.part_count()) {}

namespace {

Error not_finite(const std::string& name) {
  return invalid_argument("the gradient of " + name + " is not finite; the update was dropped");
}

Status propose_vector(const Parameter& parameter, const at::Tensor& gradient, ProposalData& data) {
  for (const Part& part : parameter.parts) {
    at::Tensor g = gradient.narrow(0, part.row_begin, part.rows).contiguous();
    const double norm = std::sqrt(g.square().sum(at::kDouble).item<double>());
    if (!std::isfinite(norm)) return not_finite(part.name);
    if (norm > 0) data.vectors.push_back({&part, std::move(g), norm});
  }
  return {};
}

Status check_rate(double learning_rate) {
  if (learning_rate > 0 && std::isfinite(learning_rate)) return {};
  return invalid_argument("the learning rate must be a positive number");
}

}  // namespace

Result<std::optional<MatrixStep>> Optimizer::propose_part(const Parameter& parameter, const Part& part,
                                                          const ParameterGradient& whole, at::Tensor* buffer) const {
  PartGradient gradient(whole, part, config_.tile_elements);
  // Adam reads fp32 gradients, which a buffer of the factors' dtype is not.
  if (buffer && !gradient.by_gram() && !gradient.rows().formed() && config_.method != Method::kAdamW) {
    if (!buffer->defined() || buffer->numel() < part.data.numel()) *buffer = at::empty({part.data.numel()}, at::kFloat);
    gradient.form_in(buffer->view(gradient.rows().dtype()));
  }
  const auto [granularity, rank] = scaling_of(config_, part.rows, part.data.size(1), parameter.vocabulary);
  const SquaredNorms norms = gradient.squared_norms(config_.apollo() && granularity == Granularity::kChannel);
  const double norm = std::sqrt(norms.total);
  if (!std::isfinite(norm)) return not_finite(part.name);
  if (norm == 0) return std::optional<MatrixStep>();
  ApolloStep step{.scale = 1};
  if (config_.apollo()) {
    const Moments& own = moments_[part.id];
    const int64_t m = std::min(part.rows, part.data.size(1));
    const at::Tensor p = projection(config_, rank, m, gradient.tall(), part.id, own.updates);
    step = apollo_step(gradient, norms, p, granularity, own, config_);
  }
  return std::optional(MatrixStep{&part, gradient.rows(), norm, std::move(step)});
}

Result<Proposal> Optimizer::propose(weights::GradientSet gradients, double learning_rate) const {
  const at::NoGradGuard no_grad;
  LATHE_TRY(check_rate(learning_rate));
  auto data = std::make_unique<ProposalData>();
  data->learning_rate = learning_rate;
  data->after_updates = updates_;
  for (const Parameter& parameter : store_.parameters()) {
    if (const at::Tensor& vector = gradients.vectors[parameter.id]; vector.defined()) {
      LATHE_TRY(propose_vector(parameter, vector, *data));
    }
    weights::MatrixGradient& matrix = gradients.matrices[parameter.id];
    if (matrix.empty() || (parameter.vocabulary && !config_.train_embeddings)) continue;
    const ParameterGradient gradient = gather(matrix, parameter);
    matrix = {};  // what the proposal does not keep is free from here on
    for (const Part& part : parameter.parts) {
      auto step = LATHE_TRY(propose_part(parameter, part, gradient, nullptr));
      if (step) data->matrices.push_back(std::move(*step));
    }
  }
  return Proposal(std::move(data));
}

namespace {

// W <- round(W - step U - decay W) for elements first .. of a part, U bf16 or fp32.
UpdateStats apply(const Part& part, int64_t first, int64_t n, const at::Tensor& u, const Update& update) {
  if (part.data.scalar_type() == at::kFloat) {
    return kernels::update_fp32(part.data.data_ptr<float>() + first, u.const_data_ptr<float>(), n, update);
  }
  auto* w = reinterpret_cast<uint16_t*>(part.data.data_ptr<at::BFloat16>()) + first;
  if (u.scalar_type() == at::kFloat) return kernels::update_bf16(w, u.const_data_ptr<float>(), first, n, update);
  return kernels::update_bf16(w, reinterpret_cast<const uint16_t*>(u.const_data_ptr<at::BFloat16>()), first, n, update);
}

// Plain Adam's moments of one tensor, ready for its next update.
Moments& begin_adam(Moments& moments, const at::Tensor& like) {
  if (!moments.m.defined()) {
    moments.m = at::zeros(like.sizes(), at::kFloat);
    moments.v = at::zeros(like.sizes(), at::kFloat);
  }
  ++moments.updates;
  return moments;
}

// A matrix being committed.
struct MatrixCommit {
  const MatrixStep* step;
  PartRows gradient;  // fp32 where Adam needs it
  Moments* adam;      // null with other methods
  kernels::AdamCoefficients coefficients;
  Update update;
};

// Consecutive rows of one matrix.
struct Tile {
  size_t matrix;
  int64_t begin, count;
};

// `scratch` is of the tile's size at least, in the dtype of the gradient.
UpdateStats commit_tile(const MatrixCommit& matrix, const Tile& tile, const at::Tensor& scratch) {
  const int64_t b = matrix.gradient.columns(), first = tile.begin * b, n = tile.count * b;
  const at::Tensor& channels = matrix.step->apollo.channel_scale;
  at::Tensor u = matrix.gradient.read(tile.begin, tile.count, scratch);
  // What lies elsewhere belongs to the proposal, of which a commit changes nothing.
  if (matrix.gradient.formed() && (channels.defined() || matrix.adam)) {
    u = scratch.narrow(0, 0, n).view({tile.count, b}).copy_(u);
  }
  if (channels.defined()) {
    u.mul_(matrix.gradient.tall() ? channels.narrow(0, tile.begin, tile.count).unsqueeze(1) : channels.unsqueeze(0));
  }
  if (matrix.adam) {
    kernels::adam_direction(u.data_ptr<float>(), matrix.adam->m.data_ptr<float>() + first,
                            matrix.adam->v.data_ptr<float>() + first, n, matrix.coefficients);
  }
  return apply(*matrix.step->part, first, n, u, matrix.update);
}

// All matrices in one parallel pass over tiles of at most `tile_elements` (or one row). Returns the stats of each.
std::vector<UpdateStats> commit_tiles(const std::vector<MatrixCommit>& matrices, int64_t tile_elements) {
  std::vector<Tile> tiles;
  int64_t largest = 0;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const int64_t a = matrices[i].gradient.rows(), b = matrices[i].gradient.columns();
    const int64_t rows = tile_rows(a, b, tile_elements);
    for (int64_t begin = 0; begin < a; begin += rows) tiles.push_back({i, begin, std::min(rows, a - begin)});
    largest = std::max(largest, rows * b);
  }
  std::vector<UpdateStats> by_tile(tiles.size()), by_matrix(matrices.size());
  at::parallel_for(0, static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad;
    const at::Tensor memory = at::empty({largest}, at::kFloat);
    for (int64_t i = begin; i < end; ++i) {
      const MatrixCommit& matrix = matrices[tiles[i].matrix];
      by_tile[i] = commit_tile(matrix, tiles[i], memory.view(matrix.gradient.dtype()));
    }
  });
  // Added in order, so that a report does not depend on the number of threads either.
  for (size_t i = 0; i < tiles.size(); ++i) by_matrix[tiles[i].matrix] += by_tile[i];
  return by_matrix;
}

}  // namespace

void CommitReport::operator+=(CommitReport other) {
  total += other.total;
  gradient_norm = std::hypot(gradient_norm, other.gradient_norm);
  std::move(other.tensors.begin(), other.tensors.end(), std::back_inserter(tensors));
}

CommitReport Optimizer::commit(Proposal proposal) {
  LATHE_CHECK(proposal.data_ != nullptr && proposal.data_->after_updates == updates_);
  return write(*proposal.data_, updates_++);
}

CommitReport Optimizer::write(const ProposalData& data, int64_t update_number) {
  const at::NoGradGuard no_grad;
  const double rate = data.learning_rate, shrink = rate * config_.weight_decay;
  const auto update_of = [&](const Part& part, double scale, double decay) {
    // The authors decay what the update has left: (1 - decay)(W - step U).
    const double step = rate * scale * (config_.official_compat ? 1 - decay : 1);
    return Update{.step = static_cast<float>(step),
                  .decay = static_cast<float>(decay),
                  .rounding = config_.rounding,
                  .seed = config_.seed,
                  .stream = static_cast<uint32_t>(part.id),
                  .update_index = static_cast<uint32_t>(update_number)};
  };
  CommitReport report;
  const auto add = [&](const Part& part, double norm, double limiter, const UpdateStats& stats) {
    report.tensors.push_back({part.name, norm, std::sqrt(stats.intended_squared) / rate, limiter, stats});
    report.total += stats;
    report.gradient_norm = std::hypot(report.gradient_norm, norm);
  };

  std::vector<MatrixCommit> matrices;
  for (const MatrixStep& step : data.matrices) {
    MatrixCommit& matrix = matrices.emplace_back(
        MatrixCommit{&step, step.gradient, nullptr, {}, update_of(*step.part, step.apollo.scale, shrink)});
    if (config_.method != Method::kAdamW) continue;
    matrix.gradient = step.gradient.widened();
    matrix.adam = &begin_adam(moments_[step.part->id], step.part->data);
    matrix.coefficients = adam_coefficients(config_, matrix.adam->updates);
  }
  const std::vector<UpdateStats> stats = commit_tiles(matrices, config_.tile_elements);
  for (size_t i = 0; i < matrices.size(); ++i) {
    const MatrixStep& step = *matrices[i].step;
    if (config_.apollo()) moments_[step.part->id] = step.apollo.next;
    add(*step.part, step.norm, step.apollo.limiter, stats[i]);
  }

  for (const VectorStep& step : data.vectors) {
    const at::Tensor u = step.gradient.clone();
    if (config_.method != Method::kSgd) {
      const Moments& adam = begin_adam(moments_[step.part->id], u);
      kernels::adam_direction(u.data_ptr<float>(), adam.m.data_ptr<float>(), adam.v.data_ptr<float>(), u.numel(),
                              adam_coefficients(config_, adam.updates));
    }
    const Update update = update_of(*step.part, 1, config_.official_compat ? shrink : 0);
    add(*step.part, step.norm, 1, apply(*step.part, 0, step.part->rows, u, update));
  }
  return report;
}

void StreamedUpdate::write(const ProposalData& data) {
  if (!update_) update_ = optimizer_.updates_++;
  report_ += optimizer_.write(data, *update_);
}

Status StreamedUpdate::apply(weights::GradientSet gradients) {
  const at::NoGradGuard no_grad;
  LATHE_TRY(check_rate(learning_rate_));
  for (const Parameter& parameter : optimizer_.store_.parameters()) {
    if (const at::Tensor& vector = gradients.vectors[parameter.id]; vector.defined()) {
      ProposalData piece{.learning_rate = learning_rate_};
      LATHE_TRY(propose_vector(parameter, vector, piece));
      write(piece);
    }
    weights::MatrixGradient& matrix = gradients.matrices[parameter.id];
    if (matrix.empty() || (parameter.vocabulary && !optimizer_.config_.train_embeddings)) continue;
    const ParameterGradient gradient = gather(matrix, parameter);
    matrix = {};
    for (const Part& part : parameter.parts) {
      auto step = LATHE_TRY(optimizer_.propose_part(parameter, part, gradient, &buffer_));
      ProposalData piece{.learning_rate = learning_rate_};
      if (step) piece.matrices.push_back(std::move(*step));
      write(piece);
    }
  }
  return {};
}

int64_t Optimizer::state_bytes() const {
  int64_t bytes = 0;
  for (const Moments& moments : moments_) {
    if (moments.m.defined()) bytes += static_cast<int64_t>(moments.m.nbytes() + moments.v.nbytes());
  }
  return bytes;
}

}  // namespace lathe::optim
