#include "optim/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "gpu/device.h"
#include "optim/apollo.h"
#include "optim/gpu_writer.h"
#include "optim/part_gradient.h"

namespace lathe::optim {

using kernels::Update;
using kernels::UpdateStats;
using weights::Parameter;
using weights::Part;

struct PendingMatrix {
  const Part* part;
  PartRows gradient;
  ApolloMeasure measure;
  at::Tensor p;
  int64_t at;  // its first number among all
};

struct PendingVector {
  const Part* part;
  at::Tensor gradient;  // fp32
  int64_t at;
};

// Gradients that are measured, and the measures not yet read.
struct PendingSteps {
  std::vector<at::Tensor> numbers;  // fp64: of a matrix those of ApolloMeasure, or ‖G‖² alone as of a vector
  int64_t count = 0;
  std::vector<PendingMatrix> matrices;
  std::vector<PendingVector> vectors;

  void add_matrix(const Part& part, const PartRows& gradient, ApolloMeasure measure, at::Tensor p) {
    const at::Tensor own = measure.numbers.view({-1});
    matrices.push_back({&part, gradient, std::move(measure), std::move(p), count});
    add(own);
  }
  void add_vector(const Parameter& parameter, const at::Tensor& gradient) {
    for (const Part& part : parameter.parts) {
      at::Tensor g = gradient.narrow(0, part.row_begin, part.rows).contiguous();
      const at::Tensor squared_norm = g.square().sum(at::kDouble).view({1});
      vectors.push_back({&part, std::move(g), count});
      add(squared_norm);
    }
  }

 private:
  void add(const at::Tensor& own) {
    numbers.push_back(own);
    count += own.numel();
  }
};

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
    : store_(store), config_(config), moments_(store.part_count()), shadows_(store.part_count()) {}

Status Optimizer::check(const weights::WeightStore& store, const OptimizerConfig& config) {
  LATHE_TRY(config.validate());
  if (config.rounding != kernels::Rounding::kShadow) return {};
  bool needed = false;
  for (const Parameter& parameter : store.parameters()) {
    if (!parameter.data.is_cpu())
      return unsupported("shadow rounding is for weights on a CPU; use stochastic rounding");
    needed = needed || parameter.data.scalar_type() == at::kBFloat16;
  }
  if (needed) return {};
  return invalid_argument(
      "shadow rounding keeps fp32 copies of bf16 weights; these are fp32 and are not rounded at all");
}

namespace {

Error not_finite(const std::string& name) {
  return invalid_argument("the gradient of " + name + " is not finite; the update was dropped");
}

Status check_rate(double learning_rate) {
  if (learning_rate > 0 && std::isfinite(learning_rate)) return {};
  return invalid_argument("the learning rate must be a positive number");
}

}  // namespace

void Optimizer::measure(const Parameter& parameter, const Part& part, const ParameterGradient& whole,
                        at::Tensor* buffer, PendingSteps& pending) const {
  PartGradient gradient(whole, part, config_.tile_elements);
  // Adam reads fp32 gradients, which a buffer of the factors' dtype is not.
  if (buffer && !gradient.by_gram() && !gradient.rows().formed() && config_.method != Method::kAdamW) {
    if (!buffer->defined() || buffer->numel() < part.data.numel())
      *buffer = at::empty({part.data.numel()}, part.data.options().dtype(at::kFloat));
    gradient.form_in(buffer->view(gradient.rows().dtype()));
  }
  const auto [granularity, rank] = scaling_of(config_, part.rows, part.data.size(1), parameter.vocabulary);
  const SquaredNorms norms = gradient.squared_norms(config_.apollo() && granularity == Granularity::kChannel);
  if (!config_.apollo()) {
    pending.add_matrix(part, gradient.rows(), {.numbers = norms.sum}, {});
    return;
  }
  const Moments& own = moments_[part.id];
  at::Tensor p = own.p;
  if (!p.defined() || own.updates % config_.refresh_every == 0) {
    const int64_t m = std::min(part.rows, part.data.size(1));
    p = projection(config_, rank, m, gradient.tall(), part.id, own.updates).to(part.data.device());
  }
  pending.add_matrix(part, gradient.rows(), apollo_measure(gradient, norms, p, granularity, own, config_), p);
}

Status Optimizer::settle(PendingSteps pending, ProposalData& data) const {
  if (pending.numbers.empty()) return {};
  const at::Tensor read = at::cat(pending.numbers).cpu();  // the one wait for a GPU
  const auto* numbers = read.const_data_ptr<double>();
  for (PendingMatrix& matrix : pending.matrices) {
    const double* own = numbers + matrix.at;
    const double norm = std::sqrt(own[0]);
    if (!std::isfinite(norm)) return not_finite(matrix.part->name);
    if (norm == 0) continue;
    ApolloStep step{.scale = 1};
    if (config_.apollo()) {
      step = apollo_finish(matrix.measure, own, moments_[matrix.part->id], config_);
      step.next.p = matrix.p;
    }
    data.matrices.push_back({matrix.part, std::move(matrix.gradient), norm, std::move(step)});
  }
  for (PendingVector& vector : pending.vectors) {
    const double norm = std::sqrt(numbers[vector.at]);
    if (!std::isfinite(norm)) return not_finite(vector.part->name);
    if (norm > 0) data.vectors.push_back({vector.part, std::move(vector.gradient), norm});
  }
  return {};
}

Result<Proposal> Optimizer::propose(weights::GradientSet gradients, double learning_rate) const {
  const at::NoGradGuard no_grad;
  LATHE_TRY(check(store_, config_));
  LATHE_TRY(check_rate(learning_rate));
  auto data = std::make_unique<ProposalData>();
  data->learning_rate = learning_rate;
  data->after_updates = updates_;
  PendingSteps pending;
  for (const Parameter& parameter : store_.parameters()) {
    if (const at::Tensor& vector = gradients.vectors[parameter.id]; vector.defined()) {
      pending.add_vector(parameter, vector);
    }
    weights::MatrixGradient& matrix = gradients.matrices[parameter.id];
    if (matrix.empty() || (parameter.vocabulary && !config_.train_embeddings)) continue;
    const ParameterGradient gradient = gather(matrix, parameter);
    matrix = {};  // what the proposal does not keep is free from here on
    for (const Part& part : parameter.parts) measure(parameter, part, gradient, nullptr, pending);
  }
  LATHE_TRY(settle(std::move(pending), *data));
  return Proposal(std::move(data));
}

namespace {

// W <- round(W - step U - decay W) for elements first .. of a part, U bf16 or fp32. `shadow` belongs to shadow
// rounding.
UpdateStats apply(const Part& part, int64_t first, int64_t n, const at::Tensor& u, const Update& update,
                  const at::Tensor& shadow) {
  if (part.data.scalar_type() == at::kFloat) {
    return kernels::update_fp32(part.data.data_ptr<float>() + first, u.const_data_ptr<float>(), n, update);
  }
  auto* w = reinterpret_cast<uint16_t*>(part.data.data_ptr<at::BFloat16>()) + first;
  float* exact = shadow.defined() ? shadow.data_ptr<float>() + first : nullptr;
  if (u.scalar_type() == at::kFloat) {
    const float* wide = u.const_data_ptr<float>();
    return exact ? kernels::update_shadow(w, exact, wide, n, update) : kernels::update_bf16(w, wide, first, n, update);
  }
  const auto* narrow = reinterpret_cast<const uint16_t*>(u.const_data_ptr<at::BFloat16>());
  return exact ? kernels::update_shadow(w, exact, narrow, n, update)
               : kernels::update_bf16(w, narrow, first, n, update);
}

// Plain Adam's moments of one tensor, ready for its next update.
Moments& begin_adam(Moments& moments, const at::Tensor& like) {
  if (!moments.m.defined()) {
    moments.m = at::zeros(like.sizes(), like.options().dtype(at::kFloat));
    moments.v = at::zeros_like(moments.m);
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
  at::Tensor shadow;  // undefined with other roundings
};

// The direction of a 1-D parameter, being committed.
struct VectorCommit {
  const VectorStep* step;
  at::Tensor direction;
  Update update;
  at::Tensor shadow;
};

// Consecutive rows of one matrix.
struct RowTile {
  size_t matrix;
  int64_t begin, count;
};

// `scratch` is of the tile's size at least, in the dtype of the gradient.
UpdateStats commit_tile(const MatrixCommit& matrix, const RowTile& tile, const at::Tensor& scratch) {
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
  return apply(*matrix.step->part, first, n, u, matrix.update, matrix.shadow);
}

// All matrices cut into tiles of at most `tile_elements` (or one row). `largest` becomes the elements of the largest.
std::vector<RowTile> tiles_of(const std::vector<MatrixCommit>& matrices, int64_t tile_elements, int64_t& largest) {
  std::vector<RowTile> tiles;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const int64_t a = matrices[i].gradient.rows(), b = matrices[i].gradient.columns();
    const int64_t rows = tile_rows(a, b, tile_elements, matrices[i].gradient.formed() ? kFormedTiles : 1);
    for (int64_t begin = 0; begin < a; begin += rows) tiles.push_back({i, begin, std::min(rows, a - begin)});
    largest = std::max(largest, rows * b);
  }
  return tiles;
}

// All matrices in one parallel pass over tiles. Returns the stats of each.
std::vector<UpdateStats> commit_tiles(const std::vector<MatrixCommit>& matrices, int64_t tile_elements) {
  int64_t largest = 0;
  const std::vector<RowTile> tiles = tiles_of(matrices, tile_elements, largest);
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

// The direction of a 1-D parameter.
at::Tensor vector_direction(const VectorStep& step, const OptimizerConfig& config, std::vector<Moments>& moments) {
  at::Tensor u = step.gradient.clone();
  if (config.method == Method::kSgd) return u;
  const Moments& adam = begin_adam(moments[step.part->id], u);
  const kernels::AdamCoefficients coefficients = adam_coefficients(config, adam.updates);
  if constexpr (gpu::kBuilt) {
    if (u.is_cuda()) {
      gpu_adam_direction(u, adam.m.view({-1}), adam.v.view({-1}), coefficients);
      return u;
    }
  }
  kernels::adam_direction(u.data_ptr<float>(), adam.m.data_ptr<float>(), adam.v.data_ptr<float>(), u.numel(),
                          coefficients);
  return u;
}

// The same on a GPU: everything is queued, and the statistics are read once, at the end. Stats of the matrices, then of
// the vectors.
std::vector<UpdateStats> commit_on_gpu(const std::vector<MatrixCommit>& matrices,
                                       const std::vector<VectorCommit>& vectors, at::Device device) {
  int64_t largest = 0;
  const std::vector<RowTile> tiles = tiles_of(matrices, kGpuTileElements, largest);
  const at::Tensor scratch = at::empty({largest}, at::TensorOptions().device(device).dtype(at::kFloat));
  GpuWriter writer(device, static_cast<int64_t>(tiles.size() + vectors.size()));
  for (const RowTile& tile : tiles) {
    const MatrixCommit& matrix = matrices[tile.matrix];
    const int64_t b = matrix.gradient.columns(), first = tile.begin * b, n = tile.count * b;
    at::Tensor u = matrix.gradient.read(tile.begin, tile.count, scratch);
    if (matrix.adam) {
      if (matrix.gradient.formed()) u = scratch.narrow(0, 0, n).view({tile.count, b}).copy_(u);
      gpu_adam_direction(u, matrix.adam->m.view({-1}).narrow(0, first, n),
                         matrix.adam->v.view({-1}).narrow(0, first, n), matrix.coefficients);
    }
    at::Tensor channels = matrix.step->apollo.channel_scale;
    const bool by_row = matrix.gradient.tall();
    if (channels.defined() && by_row) channels = channels.narrow(0, tile.begin, tile.count);
    writer.write(matrix.step->part->data, first, u, channels, by_row, matrix.update);
  }
  for (const VectorCommit& vector : vectors)
    writer.write(vector.step->part->data, 0, vector.direction, {}, false, vector.update);

  const std::vector<UpdateStats> by_launch = writer.statistics();
  std::vector<UpdateStats> stats(matrices.size());
  for (size_t i = 0; i < tiles.size(); ++i) stats[tiles[i].matrix] += by_launch[i];
  stats.insert(stats.end(), by_launch.begin() + static_cast<int64_t>(tiles.size()), by_launch.end());
  return stats;
}

// Stats of the matrices, then of the vectors.
std::vector<UpdateStats> commit_all(const std::vector<MatrixCommit>& matrices, const std::vector<VectorCommit>& vectors,
                                    int64_t tile_elements) {
  if (matrices.empty() && vectors.empty()) return {};
  const Part& any = matrices.empty() ? *vectors[0].step->part : *matrices[0].step->part;
  if constexpr (gpu::kBuilt) {
    if (any.data.is_cuda()) return commit_on_gpu(matrices, vectors, any.data.device());
  }
  std::vector<UpdateStats> stats = commit_tiles(matrices, tile_elements);
  for (const auto& [step, direction, update, shadow] : vectors)
    stats.push_back(apply(*step->part, 0, step->part->rows, direction, update, shadow));
  return stats;
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

  const auto shadow_of = [&](const Part& part) -> at::Tensor {
    if (config_.rounding != kernels::Rounding::kShadow || part.data.scalar_type() == at::kFloat) return {};
    at::Tensor& shadow = shadows_[part.id];
    if (!shadow.defined()) shadow = part.data.to(at::kFloat);
    return shadow;
  };

  std::vector<MatrixCommit> matrices;
  for (const MatrixStep& step : data.matrices) {
    MatrixCommit& matrix = matrices.emplace_back(
        MatrixCommit{&step, step.gradient, nullptr, {}, update_of(*step.part, step.apollo.scale, shrink), {}});
    matrix.shadow = shadow_of(*step.part);
    if (config_.method != Method::kAdamW) continue;
    matrix.gradient = step.gradient.widened();
    matrix.adam = &begin_adam(moments_[step.part->id], step.part->data);
    matrix.coefficients = adam_coefficients(config_, matrix.adam->updates);
  }
  std::vector<VectorCommit> vectors;
  for (const VectorStep& step : data.vectors) {
    vectors.push_back({&step, vector_direction(step, config_, moments_),
                       update_of(*step.part, 1, config_.official_compat ? shrink : 0), shadow_of(*step.part)});
  }
  const std::vector<UpdateStats> stats = commit_all(matrices, vectors, config_.tile_elements);
  for (size_t i = 0; i < matrices.size(); ++i) {
    const MatrixStep& step = *matrices[i].step;
    if (config_.apollo()) moments_[step.part->id] = step.apollo.next;
    add(*step.part, step.norm, step.apollo.limiter, stats[i]);
  }
  for (size_t i = 0; i < data.vectors.size(); ++i)
    add(*data.vectors[i].part, data.vectors[i].norm, 1, stats[matrices.size() + i]);
  return report;
}

void StreamedUpdate::write(const ProposalData& data) {
  if (!update_) update_ = optimizer_.updates_++;
  report_ += optimizer_.write(data, *update_);
}

Status StreamedUpdate::apply(weights::GradientSet gradients) {
  const at::NoGradGuard no_grad;
  LATHE_TRY(Optimizer::check(optimizer_.store_, optimizer_.config_));
  LATHE_TRY(check_rate(learning_rate_));
  for (const Parameter& parameter : optimizer_.store_.parameters()) {
    const auto write_pending = [&](PendingSteps pending) -> Status {
      ProposalData piece{.learning_rate = learning_rate_};
      LATHE_TRY(optimizer_.settle(std::move(pending), piece));
      write(piece);
      return {};
    };
    if (const at::Tensor& vector = gradients.vectors[parameter.id]; vector.defined()) {
      PendingSteps pending;
      pending.add_vector(parameter, vector);
      LATHE_TRY(write_pending(std::move(pending)));
    }
    weights::MatrixGradient& matrix = gradients.matrices[parameter.id];
    if (matrix.empty() || (parameter.vocabulary && !optimizer_.config_.train_embeddings)) continue;
    const ParameterGradient gradient = gather(matrix, parameter);
    matrix = {};
    for (const Part& part : parameter.parts) {  // one at a time: they share the buffer
      PendingSteps pending;
      optimizer_.measure(parameter, part, gradient, &buffer_, pending);
      LATHE_TRY(write_pending(std::move(pending)));
    }
  }
  return {};
}

int64_t Optimizer::state_bytes() const {
  int64_t bytes = 0;
  for (const Moments& moments : moments_) {
    if (moments.m.defined()) bytes += static_cast<int64_t>(moments.m.nbytes() + moments.v.nbytes());
  }
  for (const at::Tensor& shadow : shadows_) bytes += shadow.defined() ? static_cast<int64_t>(shadow.nbytes()) : 0;
  return bytes;
}

}  // namespace lathe::optim
