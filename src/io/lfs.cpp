#include "io/lfs.h"

namespace lathe::io {
namespace {

constexpr std::string_view kMark = "version https://git-lfs.github.com/spec/v1";
static_assert(kMark.size() == kLfsMark);

}  // namespace

bool is_lfs_pointer(std::string_view begin) {
  return begin.starts_with(kMark);
}

Status refuse_lfs_pointer(std::string_view begin) {
  if (!is_lfs_pointer(begin)) return {};
  return invalid_argument("it is a Git LFS pointer, not the file itself; run `git lfs pull` in the directory");
}

}  // namespace lathe::io
