#include "vllm/import.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "base/units.h"
#include "delta/model_dir.h"
#include "vllm/names.h"
#include "weights/live_tensors.h"

namespace lathe::vllm {
namespace {

using weights::ParameterSpec;
using weights::WeightStore;

constexpr std::string_view kHead = "lm_head.weight";

// The engine's tensors of the language model, by the name that the checkpoint would give them.
using ByName = std::map<std::string, const ServedTensor*, std::less<>>;

ByName language_tensors(const Manifest& manifest, std::string_view text_prefix) {
  ByName by_name;
  for (const ServedTensor& tensor : manifest.tensors) {
    if (auto name = checkpoint_name(tensor.name, text_prefix)) by_name.emplace(std::move(*name), &tensor);
  }
  return by_name;
}

Result<at::ScalarType> scalar_type(const ServedTensor& tensor) {
  if (tensor.dtype == delta::Dtype::kBF16) return at::kBFloat16;
  if (tensor.dtype == delta::Dtype::kF32) return at::kFloat;
  return unsupported("vLLM serves " + tensor.name + " as " + std::string(delta::dtype_name(tensor.dtype)) +
                     "; start it with --dtype bfloat16");
}

// Whether the engine's shape is that of the parameter: the same, flat where the store holds it flat, or a vocabulary
// with more rows.
bool fits(const ServedTensor& tensor, const ParameterSpec& spec, const std::vector<int64_t>& held) {
  if (held.size() == 1) return c10::multiply_integers(tensor.shape) == held[0];
  if (tensor.shape.size() != held.size() || tensor.shape[1] != held[1]) return false;
  return spec.vocabulary ? tensor.shape[0] >= held[0] : tensor.shape[0] == held[0];
}

Status check_ties(const ByName& served, std::span<const ParameterSpec> specs, const ServedTensor& embedding) {
  const bool own_head = std::any_of(specs.begin(), specs.end(), [](const auto& spec) { return spec.name == kHead; });
  const auto head = served.find(kHead);
  const bool same =
      head == served.end() || (head->second->memory == embedding.memory && head->second->offset == embedding.offset);
  if (own_head && same)
    return unsupported(
        "vLLM uses the embedding as the head, but config.json does not tie them; check tie_word_embeddings");
  if (!own_head && !same)
    return unsupported(
        "config.json ties the head to the embedding, but vLLM holds a head of its own; check tie_word_embeddings");
  return {};
}

}  // namespace

Result<WeightStore> import_weights(const Manifest& manifest, std::span<const MappedMemory> memories, at::Device device,
                                   std::span<const ParameterSpec> specs, std::string_view text_prefix) {
  LATHE_CHECK(memories.size() == manifest.memories.size());
  const ByName served = language_tensors(manifest, text_prefix);
  std::set<std::string_view> used;
  WeightStore store;
  for (const ParameterSpec& spec : specs) {
    const auto found = served.find(spec.name);
    if (found == served.end())
      return unsupported("vLLM serves no tensor " + spec.name +
                         ", which config.json calls for; this version of vLLM is not known to Lathe");
    const ServedTensor& tensor = *found->second;
    const std::vector<int64_t> held = spec.held_shape();
    if (!fits(tensor, spec, held)) {
      return unsupported("vLLM serves " + tensor.name + " in shape " + shape_text(tensor.shape) +
                         ", where config.json calls for " + shape_text(held) +
                         "; was it started with another model, or with tensor parallelism?");
    }
    const at::ScalarType dtype = LATHE_TRY(scalar_type(tensor));
    const MappedMemory& memory = memories[tensor.memory];
    // Each view holds on to the mapping.
    const at::Tensor data = at::from_blob(
        memory.data + tensor.offset, held, [keep = memory.keep](void*) {},
        at::TensorOptions().dtype(dtype).device(device), device);
    store.add(spec.name, data, spec.held_parts(), spec.vocabulary);
    used.insert(found->first);
  }
  const auto embedding = served.find(std::string(text_prefix) + "embed_tokens.weight");
  if (embedding != served.end()) LATHE_TRY(check_ties(served, specs, *embedding->second));
  for (const auto& [name, tensor] : served) {
    if (!used.contains(name) && name != kHead)
      return unsupported("vLLM serves a tensor " + tensor->name + " that Lathe does not know in this architecture");
  }
  return store;
}

namespace {

delta::Dtype dtype_of(const weights::Part& part) {
  return part.data.scalar_type() == at::kFloat ? delta::Dtype::kF32 : delta::Dtype::kBF16;
}

}  // namespace

Status check_dtypes(const WeightStore& store, const delta::ModelDir& dir) {
  for (const weights::Parameter& parameter : store.parameters()) {
    for (const weights::Part& part : parameter.parts) {
      const delta::TensorInfo* info = dir.find(part.name);
      if (!info || info->dtype == dtype_of(part)) continue;
      return unsupported(
          "vLLM holds " + part.name + " as " + std::string(delta::dtype_name(dtype_of(part))) +
          ", the model directory as " + std::string(delta::dtype_name(info->dtype)) +
          "; start vLLM on a directory in one type: `lathe convert MODEL_DIR NEW_DIR` writes one in BF16");
    }
  }
  return {};
}

Result<std::vector<std::string>> differing_parts(const WeightStore& store, const delta::ModelDir& dir) {
  constexpr uint64_t kPiece = uint64_t{8} << 20;
  const weights::LiveTensors live(store);
  std::vector<std::byte> ours(kPiece), theirs(kPiece);
  std::vector<std::string> differing;
  for (const weights::Parameter& parameter : store.parameters()) {
    for (const weights::Part& part : parameter.parts) {
      const delta::TensorInfo* info = dir.find(part.name);
      bool same = info && info->dtype == dtype_of(part) && info->size() == part.data.nbytes();
      for (uint64_t at = 0; same && at < part.data.nbytes(); at += kPiece) {
        const auto count = static_cast<size_t>(std::min(kPiece, part.data.nbytes() - at));
        LATHE_TRY(live.read(part.name, at, {ours.data(), count}));
        LATHE_TRY(dir.read(part.name, at, {theirs.data(), count}));
        same = std::memcmp(ours.data(), theirs.data(), count) == 0;
      }
      if (!same) differing.push_back(part.name);
    }
  }
  return differing;
}

}  // namespace lathe::vllm
