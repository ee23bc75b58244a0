// The golden folders (docs/formats/golden.md) that tests of models walk: one a family, in tests/golden.
#pragma once

namespace lathe::model {

inline constexpr const char* kGoldenFamilies[] = {"llama", "qwen2", "qwen3", "qwen3_5", "granite"};

}  // namespace lathe::model
