#include "weights/weight_store.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>

#include "base/units.h"
#include "delta/model_dir.h"
#include "delta/numbers.h"

namespace lathe::weights {
namespace {

constexpr const char* kConvert = "`lathe convert MODEL_DIR NEW_DIR` writes the model in BF16";

Result<at::ScalarType> scalar_type(const delta::TensorInfo& info) {
  switch (info.dtype) {
    case delta::Dtype::kBF16:
      return at::kBFloat16;
    case delta::Dtype::kF32:
      return at::kFloat;
    default:
      return unsupported("tensor " + info.name + " has dtype " + std::string(delta::dtype_name(info.dtype)) +
                         "; weights must be BF16 or F32: " + kConvert);
  }
}

constexpr size_t kPieceBytes = size_t{4} << 20;

// That the directory holds as many bytes of a part as the store does.
Status check_size(const delta::ModelDir& dir, const Part& part) {
  const delta::TensorInfo* info = dir.find(part.name);
  if (info && info->size() == part.data.nbytes()) return {};
  return corruption("the directory's tensor " + part.name + " is not the one that was loaded");
}

// The checkpoint's entry for a part, with the shape the model needs.
Result<const delta::TensorInfo*> find(const delta::ModelDir& dir, const ParameterSpec::PartSpec& part) {
  const delta::TensorInfo* info = dir.find(part.name);
  if (!info) return invalid_argument("the checkpoint has no tensor " + part.name + ", which config.json calls for");
  if (info->shape != part.shape) {
    return invalid_argument("tensor " + part.name + " has shape " + shape_text(info->shape) +
                            "; config.json calls for " + shape_text(part.shape));
  }
  return info;
}

int64_t held_rows(const ParameterSpec::PartSpec& part) {
  return part.shape.size() <= 2 ? part.shape[0] : c10::multiply_integers(part.shape);
}

// Allocates the parameter's memory and copies its parts in, one after the other. The headers were checked.
Result<at::Tensor> read_parameter(const delta::ModelDir& dir, const ParameterSpec& spec, bool shapes_only) {
  const at::ScalarType dtype = LATHE_TRY(scalar_type(*dir.find(spec.parts.front().name)));
  at::Tensor data =
      at::empty(spec.held_shape(), at::TensorOptions().dtype(dtype).device(shapes_only ? at::kMeta : at::kCPU));
  int64_t row = 0;
  for (const auto& part : spec.parts) {
    const int64_t rows = held_rows(part);
    const at::Tensor view = data.narrow(0, row, rows);
    row += rows;
    if (shapes_only) continue;
    const std::span bytes(static_cast<std::byte*>(view.mutable_data_ptr()), view.nbytes());
    LATHE_TRY(dir.read(part.name, bytes));
    if (!delta::all_finite(dir.find(part.name)->dtype, bytes))
      return corruption("tensor " + part.name + " holds NaN or infinite values; the checkpoint is damaged");
  }
  return data;
}

// One parameter's tensors; `matrix`: the first matrix that was seen, in whose dtype all are.
Status check_parameter(const delta::ModelDir& dir, const ParameterSpec& spec, const delta::TensorInfo*& matrix) {
  const delta::TensorInfo* first = nullptr;
  for (const auto& part : spec.parts) {
    const auto* info = LATHE_TRY(find(dir, part));
    LATHE_TRY(scalar_type(*info));
    if (!first) first = info;
    const delta::TensorInfo* like = first;
    if (info->shape.size() == 2) like = matrix = matrix ? matrix : info;
    if (info->dtype == like->dtype) continue;
    return unsupported("tensor " + info->name + " has dtype " + std::string(delta::dtype_name(info->dtype)) +
                       ", tensor " + like->name + " " + std::string(delta::dtype_name(like->dtype)) +
                       "; all matrices must have one: " + kConvert);
  }
  return {};
}

}  // namespace

std::vector<int64_t> ParameterSpec::held_shape() const {
  std::vector<int64_t> shape{0};
  for (const PartSpec& part : parts) shape[0] += held_rows(part);
  if (parts.front().shape.size() == 2) shape.push_back(parts.front().shape[1]);
  return shape;
}

std::vector<std::pair<std::string, int64_t>> ParameterSpec::held_parts() const {
  std::vector<std::pair<std::string, int64_t>> held;
  for (const PartSpec& part : parts) held.emplace_back(part.name, held_rows(part));
  return held;
}

void WeightStore::add(const std::string& name, at::Tensor data,
                      const std::vector<std::pair<std::string, int64_t>>& parts, bool vocabulary) {
  Parameter parameter{
      .id = static_cast<int64_t>(parameters_.size()), .name = name, .vocabulary = vocabulary, .data = std::move(data)};
  int64_t row = 0;
  for (const auto& [part_name, rows] : parts) {
    part_by_name_[part_name] = {parameters_.size(), parameter.parts.size()};
    parameter.parts.push_back({.name = part_name,
                               .id = part_count_++,
                               .row_begin = row,
                               .rows = rows,
                               .data = parameter.data.narrow(0, row, rows)});
    row += rows;
  }
  LATHE_CHECK(row == parameter.data.size(0));
  element_count_ += parameter.data.numel();
  byte_count_ += static_cast<int64_t>(parameter.data.nbytes());
  by_name_[name] = parameters_.size();
  parameters_.push_back(std::move(parameter));
}

void WeightStore::alias(const std::string& name, std::string_view part) {
  const auto found = part_by_name_.find(std::string(part));
  LATHE_CHECK(found != part_by_name_.end() && !part_by_name_.contains(name));
  part_by_name_[name] = found->second;
}

Status WeightStore::check(const delta::ModelDir& dir, std::span<const ParameterSpec> specs) {
  const delta::TensorInfo* matrix = nullptr;
  for (const ParameterSpec& spec : specs) LATHE_TRY(check_parameter(dir, spec, matrix));
  return {};
}

Result<WeightStore> WeightStore::load(const delta::ModelDir& dir, std::span<const ParameterSpec> specs,
                                      const Placement& placement) {
  LATHE_TRY(check(dir, specs));
  WeightStore store;
  for (const ParameterSpec& spec : specs) {
    at::Tensor data = LATHE_TRY(read_parameter(dir, spec, placement.device.is_meta()));
    data = data.to(placement.device, placement.dtype.value_or(data.scalar_type()));
    store.add(spec.name, std::move(data), spec.held_parts(), spec.vocabulary);
  }
  return store;
}

Status WeightStore::check_reload(const delta::ModelDir& dir) const {
  std::vector<std::byte> piece(kPieceBytes);
  for (const Parameter& parameter : parameters_) {
    for (const Part& part : parameter.parts) {
      LATHE_TRY(check_size(dir, part));
      for (size_t begin = 0; begin < part.data.nbytes(); begin += piece.size()) {
        const size_t count = std::min(piece.size(), part.data.nbytes() - begin);
        LATHE_TRY(dir.read(part.name, begin, {piece.data(), count}));
      }
    }
  }
  return {};
}

Status WeightStore::reload(const delta::ModelDir& dir) {
  for (const Parameter& parameter : parameters_) {
    for (const Part& part : parameter.parts) {
      LATHE_TRY(check_size(dir, part));
      const at::Tensor host = part.data.is_cpu() ? part.data : at::empty_like(part.data, at::kCPU);
      LATHE_TRY(dir.read(part.name, {static_cast<std::byte*>(host.mutable_data_ptr()), host.nbytes()}));
      if (!part.data.is_cpu()) part.data.copy_(host);
    }
  }
  return {};
}

const Parameter& WeightStore::parameter(std::string_view name) const {
  const auto found = by_name_.find(std::string(name));
  LATHE_CHECK(found != by_name_.end());
  return parameters_[found->second];
}

const Part* WeightStore::find_part(std::string_view checkpoint_name) const {
  const auto found = part_by_name_.find(std::string(checkpoint_name));
  if (found == part_by_name_.end()) return nullptr;
  return &parameters_[found->second.first].parts[found->second.second];
}

}  // namespace lathe::weights
