#include "optim/state_file.h"

#include <ATen/ATen.h>

#include <cstring>

#include "delta/safetensors.h"

namespace lathe::optim {
namespace {

using delta::Dtype;

constexpr const char* kFormat = "lathe optimizer state 1";

struct DtypePair {
  Dtype file;
  at::ScalarType memory;
};
constexpr DtypePair kDtypes[] = {{Dtype::kF32, at::kFloat}, {Dtype::kF64, at::kDouble}, {Dtype::kI64, at::kLong}};

Result<at::ScalarType> scalar_type(const delta::TensorInfo& info) {
  for (const auto& [file, memory] : kDtypes) {
    if (file == info.dtype) return memory;
  }
  return corruption("the optimizer state's " + info.name + " has dtype " + std::string(delta::dtype_name(info.dtype)));
}

Dtype file_dtype(at::ScalarType dtype) {
  for (const auto& [file, memory] : kDtypes) {
    if (memory == dtype) return file;
  }
  LATHE_CHECK(!"a state tensor of a dtype that states do not have");
  return Dtype::kF32;
}

}  // namespace

Status write_state(const OptimizerState& state, io::WritableFile& file) {
  std::vector<delta::TensorInfo> infos;
  for (const auto& [name, tensor] : state.tensors) {
    infos.push_back({.name = name, .dtype = file_dtype(tensor.scalar_type()), .shape = tensor.sizes().vec()});
  }
  auto metadata = state.settings;
  metadata["format"] = kFormat;
  const std::string header = delta::format_header(infos, metadata);
  LATHE_TRY(file.append(std::as_bytes(std::span(header))));
  for (const auto& [name, tensor] : state.tensors) {
    const at::Tensor t = tensor.contiguous();
    LATHE_TRY(file.append({static_cast<const std::byte*>(t.const_data_ptr()), t.nbytes()}));
  }
  return {};
}

Result<OptimizerState> read_state(std::span<const std::byte> file) {
  const auto header = LATHE_TRY(delta::parse_header(file, file.size()).at("optimizer state"));
  OptimizerState state{.settings = header.metadata};
  const auto format = state.settings.find("format");
  if (format == state.settings.end() || format->second != kFormat) {
    return unsupported(std::string("this is not an optimizer state: its format is not '") + kFormat + "'");
  }
  state.settings.erase(format);
  for (const auto& info : header.tensors) {
    const at::Tensor t = at::empty(info.shape, LATHE_TRY(scalar_type(info)));
    std::memcpy(t.mutable_data_ptr(), file.data() + header.data_offset + info.begin, info.size());
    state.tensors[info.name] = t;
  }
  return state;
}

}  // namespace lathe::optim
