#include "io/env.h"

#include <algorithm>
#include <filesystem>

#include "io/lfs.h"

namespace lathe::io {

Result<bool> Env::exists(const std::string& path) {
  const Result<FileStat> found = stat(path);
  if (found.ok()) return true;
  if (found.error().code == Code::kNotFound) return false;
  return found.error();
}

Result<std::string> read_text(Env& env, const std::string& path) {
  const auto file = LATHE_TRY(env.open_read(path));
  std::string text(file->size(), '\0');
  LATHE_TRY(file->read_at(0, std::as_writable_bytes(std::span(text))));
  LATHE_TRY(refuse_lfs_pointer(text).at(path));
  return text;
}

std::string parent_directory(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

Status create_directory_durably(Env& env, const std::string& path) {
  LATHE_TRY(env.create_directories(path));
  return env.sync_directory(parent_directory(path));
}

Status remove_if_there(Env& env, const std::string& path) {
  const Status removed = env.remove(path);
  if (!removed.ok() && removed.error().code != Code::kNotFound) return removed;
  return {};
}

Status remove_tree(Env& env, const std::string& path) {
  const Result<FileStat> found = env.stat(path);
  if (!found.ok()) return found.error().code == Code::kNotFound ? Status() : Status(found.error());
  if (!found->is_directory || found->is_symlink) return env.remove(path);
  for (const std::string& name : LATHE_TRY(env.list(path))) LATHE_TRY(remove_tree(env, path + "/" + name));
  return env.remove_directory(path);
}

namespace {

Status copy_contents(Env& env, const std::string& from, const std::string& to) {
  constexpr uint64_t kPiece = uint64_t{4} << 20;
  const auto source = LATHE_TRY(env.open_read(from));
  LATHE_TRY(remove_if_there(env, to));
  const auto target = LATHE_TRY(env.create(to));
  std::vector<std::byte> buffer(std::min(kPiece, source->size()));
  for (uint64_t offset = 0; offset < source->size(); offset += buffer.size()) {
    const auto piece = std::span(buffer).first(std::min<uint64_t>(buffer.size(), source->size() - offset));
    LATHE_TRY(source->read_at(offset, piece));
    LATHE_TRY(target->append(piece));
  }
  LATHE_TRY(target->sync());
  return target->close();
}

Status write_durably(Env& env, const std::string& path, std::string_view text) {
  LATHE_TRY(remove_if_there(env, path));  // never goes on with a file whose sync may have failed
  const auto file = LATHE_TRY(env.create(path));
  LATHE_TRY(file->append(std::as_bytes(std::span(text))));
  LATHE_TRY(file->sync());
  return file->close();
}

}  // namespace

Status copy_file(Env& env, const std::string& from, const std::string& to) {
  const Status copied = copy_contents(env, from, to);
  // The failure is what is reported.
  if (!copied.ok()) [[maybe_unused]]
    const Status removed = remove_if_there(env, to);
  return copied;
}

Status write_text_atomically(Env& env, const std::string& path, std::string_view text) {
  const std::string temporary = path + ".lathe-new";
  Status written = write_durably(env, temporary, text);
  if (written.ok()) written = env.rename(temporary, path);
  if (!written.ok()) {
    // The failure is what is reported; recovery removes the leftovers.
    [[maybe_unused]] const Status removed = remove_if_there(env, temporary);
    return written;
  }
  return env.sync_directory(parent_directory(path));
}

}  // namespace lathe::io
