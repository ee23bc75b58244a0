// Names of an engine's tensors, in the words of the checkpoint.
//
// vLLM fuses as Lathe does (qkv_proj, gate_up_proj, in_proj_qkvz, in_proj_ba, rows one below the other), so that only
// the path in front differs, and only where a wrapper holds the text model.
//
// Threads: pure functions.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lathe::vllm {

// A fused tensor and what it is made of, in the order of its rows: the last path components but one.
struct FusedName {
  std::string_view fused;
  std::vector<std::string_view> parts;
};
const std::vector<FusedName>& fused_names();

// What the checkpoint would call `engine_name`, fused or not: `text_prefix` is that of the checkpoint's text model
// (model::ModelConfig::prefix). Nothing for a name that belongs to no language model.
std::optional<std::string> checkpoint_name(std::string_view engine_name, std::string_view text_prefix);

// The checkpoint tensors of a name that checkpoint_name() returned: itself, or the parts of a fused one.
std::vector<std::string> parts_of(std::string_view name);

}  // namespace lathe::vllm
