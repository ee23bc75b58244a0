// Constants of delta files that writer and reader share. Format page: docs/formats/delta.md.
#pragma once

#include <cstdint>

namespace lathe::checkpoint::delta_format {

inline constexpr uint64_t kMagic = 0x746C644548'54414CULL;     // "LATHEdlt"
inline constexpr uint64_t kEndMagic = 0x646E654548'54414CULL;  // "LATHEend"
inline constexpr uint32_t kVersion = 2, kOldestVersion = 1;    // what is written; the oldest that is read
inline constexpr uint64_t kFooterSize = 128;
inline constexpr uint64_t kLeastTileEntry = 44;

}  // namespace lathe::checkpoint::delta_format
