#include "vllm/names.h"

#include <array>

namespace lathe::vllm {
namespace {

// vLLM's path, and the checkpoint's; kText stands for ModelConfig::prefix. First match wins.
struct Path {
  std::string_view engine, checkpoint;
};
constexpr std::string_view kText = "";
constexpr std::array<Path, 4> kPaths = {{
    {"language_model.model.", kText},  // the text model in its wrapper with vision
    {"language_model.lm_head.", "lm_head."},
    {"lm_head.", "lm_head."},
    {"model.", kText},  // the text model alone, also of a wrapper's checkpoint
}};

}  // namespace

const std::vector<FusedName>& fused_names() {
  static const std::vector<FusedName> names = {
      {"qkv_proj", {"q_proj", "k_proj", "v_proj"}},    // llama, qwen2, qwen3, attention of qwen3_5
      {"gate_up_proj", {"gate_proj", "up_proj"}},      // all
      {"in_proj_qkvz", {"in_proj_qkv", "in_proj_z"}},  // gated delta layers of qwen3_5
      {"in_proj_ba", {"in_proj_b", "in_proj_a"}},
  };
  return names;
}

std::optional<std::string> checkpoint_name(std::string_view engine_name, std::string_view text_prefix) {
  for (const Path& path : kPaths) {
    if (!engine_name.starts_with(path.engine)) continue;
    std::string name(path.checkpoint == kText ? text_prefix : path.checkpoint);
    return name.append(engine_name.substr(path.engine.size()));
  }
  return std::nullopt;
}

std::vector<std::string> parts_of(std::string_view name) {
  const size_t end = name.rfind('.');
  const size_t begin = end == std::string_view::npos || end == 0 ? end : name.rfind('.', end - 1);
  if (begin == std::string_view::npos) return {std::string(name)};
  const std::string_view component = name.substr(begin + 1, end - begin - 1);
  for (const FusedName& fused : fused_names()) {
    if (component != fused.fused) continue;
    std::vector<std::string> parts;
    for (const std::string_view part : fused.parts)
      parts.push_back(std::string(name.substr(0, begin + 1)).append(part).append(name.substr(end)));
    return parts;
  }
  return {std::string(name)};
}

}  // namespace lathe::vllm
