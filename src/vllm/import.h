// Importing: a WeightStore over memory that a serving engine holds, by its manifest.
//
// Nothing is copied: parameters are views into the engine's memory, which stays mapped as long as one of them lives.
// The engine fuses as Lathe does, so a parameter is one of its tensors; the names of parts are the checkpoint's.
// Threads: pure functions.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vllm/manifest.h"
#include "weights/weight_store.h"

namespace lathe::delta {
class ModelDir;
}

namespace lathe::vllm {

// One memory of a manifest in this process; `keep` unmaps it.
struct MappedMemory {
  std::byte* data = nullptr;
  std::shared_ptr<void> keep;
};

// `memories`: one per memory of the manifest, all on `device`. `text_prefix`: model::ModelConfig::prefix. Refuses by
// name: a parameter that the engine lacks or holds in another shape or dtype, a tensor of its language model that the
// specs lack, a head tied on one side only. A vocabulary that the engine pads is cut to the rows that exist.
Result<weights::WeightStore> import_weights(const Manifest& manifest, std::span<const MappedMemory> memories,
                                            at::Device device, std::span<const weights::ParameterSpec> specs,
                                            std::string_view text_prefix);

// kUnsupported, naming it, if the engine holds a weight in another type than the directory: what is learned could not
// be written there.
Status check_dtypes(const weights::WeightStore& store, const delta::ModelDir& dir);

// Names of the store's parts whose bytes, or dtypes, are not the directory's. Reads both whole.
Result<std::vector<std::string>> differing_parts(const weights::WeightStore& store, const delta::ModelDir& dir);

}  // namespace lathe::vllm
