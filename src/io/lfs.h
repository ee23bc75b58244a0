// Git LFS pointers: what a clone holds where large files were not downloaded.
//
// Threads: pure functions.
#pragma once

#include <string_view>

#include "base/result.h"

namespace lathe::io {

// Whether a file that begins so is a pointer.
bool is_lfs_pointer(std::string_view begin);

// How many bytes of a file is_lfs_pointer() needs.
inline constexpr size_t kLfsMark = 42;

// kInvalidArgument, with the remedy, for one.
Status refuse_lfs_pointer(std::string_view begin);

}  // namespace lathe::io
