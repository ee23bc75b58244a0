#include "io/fault_disk.h"

#include <algorithm>
#include <cerrno>

#include "io/fault_env.h"

namespace lathe::io {
namespace {

constexpr FaultDisk::Inode kRoot = 1;
constexpr int kMaxLinks = 16;

Error failed(const std::string& what, int native) {
  Error error = io_error(what, native);
  if (native == ENOENT) error.code = Code::kNotFound;
  return error;
}

std::vector<std::string> split(const std::string& path) {
  std::vector<std::string> names;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    if (end > begin && path.substr(begin, end - begin) != ".") names.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

}  // namespace

FaultDisk::FaultDisk() {
  nodes_[kRoot].kind = Kind::kDirectory;
}

FaultDisk::Inode FaultDisk::parent(Inode directory) const {
  for (const auto& [inode, node] : nodes_) {
    for (const auto& [name, child] : node.names) {
      if (child == directory) return inode;
    }
  }
  return kRoot;
}

Result<FaultDisk::Inode> FaultDisk::walk(Inode from, const std::string& path, bool follow, int depth) const {
  if (depth > kMaxLinks) return failed("cannot follow " + path, ELOOP);
  const std::vector<std::string> names = split(path);
  Inode node = path.starts_with('/') ? kRoot : from;
  for (size_t i = 0; i < names.size(); ++i) {
    const Node& directory = nodes_.at(node);
    if (directory.kind != Kind::kDirectory) return failed("cannot open " + path, ENOTDIR);
    if (names[i] == "..") {
      node = parent(node);
      continue;
    }
    const auto found = directory.names.find(names[i]);
    if (found == directory.names.end()) return failed("cannot open " + path, ENOENT);
    const Node& next = nodes_.at(found->second);
    if (next.kind == Kind::kLink && (follow || i + 1 < names.size())) {
      node = LATHE_TRY(walk(node, next.target, true, depth + 1));
    } else {
      node = found->second;
    }
  }
  return node;
}

Result<FaultDisk::Inode> FaultDisk::find(const std::string& path, bool follow) const {
  return walk(kRoot, path, follow, 0);
}

Result<FaultDisk::Place> FaultDisk::place(const std::string& path) const {
  const std::vector<std::string> names = split(path);
  if (names.empty()) return failed("cannot change " + path, EBUSY);
  std::string parent = "/";
  for (size_t i = 0; i + 1 < names.size(); ++i) parent += names[i] + "/";
  const Inode directory = LATHE_TRY(find(parent));
  if (kind(directory) != Kind::kDirectory) return failed("cannot change " + path, ENOTDIR);
  return Place{directory, names.back()};
}

std::optional<FaultDisk::Inode> FaultDisk::at(const Place& place) const {
  const auto& entries = names(place.directory);
  const auto found = entries.find(place.name);
  if (found == entries.end()) return std::nullopt;
  return found->second;
}

uint64_t FaultDisk::links(Inode node) const {
  uint64_t count = 0;
  for (const auto& [inode, directory] : nodes_) {
    for (const auto& [name, target] : directory.names) count += target == node;
  }
  return count;
}

uint64_t FaultDisk::used() const {
  std::set<Inode> files;
  for (const auto& [inode, directory] : nodes_) {
    for (const auto& [name, node] : directory.names) {
      if (nodes_.at(node).kind == Kind::kFile) files.insert(node);
    }
  }
  uint64_t bytes = 0;
  for (const Inode file : files) bytes += contents(file)->size();
  return bytes;
}

void FaultDisk::apply(const NameChange& change, std::map<Inode, Node>& nodes, bool synced) {
  const auto names_of = [&](Inode directory) -> std::map<std::string, Inode>& {
    Node& node = nodes.at(directory);
    return synced ? node.synced_names : node.names;
  };
  for (const auto& entry : change.removed) {
    auto& names = names_of(entry.directory);
    // The name may by now belong to something else: an earlier change may be lost where a later one is kept.
    const auto found = names.find(entry.name);
    if (found != names.end() && found->second == entry.node) names.erase(found);
  }
  for (const auto& entry : change.added) names_of(entry.directory)[entry.name] = entry.node;
}

void FaultDisk::change(NameChange change) {
  for (const auto& entry : change.removed) change.unsynced.insert(entry.directory);
  for (const auto& entry : change.added) change.unsynced.insert(entry.directory);
  apply(change, nodes_, /*synced=*/false);
  changes_.push_back(std::move(change));
}

Result<FaultDisk::Inode> FaultDisk::create(const std::string& path) {
  if (const auto existing = find(path); existing.ok()) {
    if (kind(*existing) != Kind::kFile) return failed("cannot open " + path, EISDIR);
    Node& node = nodes_.at(*existing);
    if (!node.now->empty()) node.unsynced.push_back({.truncates = true});
    node.now = std::make_shared<const std::string>();
    return *existing;
  }
  const Place where = LATHE_TRY(place(path));
  const Inode inode = next_++;
  Node& node = nodes_[inode];
  node.now = node.durable = std::make_shared<const std::string>();
  change({.added = {{where.directory, where.name, inode}}});
  return inode;
}

Status FaultDisk::make(const std::string& path, Kind kind, const std::string& target) {
  const Place where = LATHE_TRY(place(path));
  if (at(where)) return failed("cannot make " + path, EEXIST);
  const Inode inode = next_++;
  nodes_[inode].kind = kind;
  nodes_[inode].target = target;
  change({.added = {{where.directory, where.name, inode}}});
  return {};
}

Status FaultDisk::link(const std::string& existing, const std::string& name) {
  const Inode node = LATHE_TRY(find(existing, /*follow=*/false));
  const Place where = LATHE_TRY(place(name));
  if (at(where)) return failed("cannot link " + name, EEXIST);
  if (kind(node) == Kind::kDirectory) return failed("cannot link " + name, EPERM);
  change({.added = {{where.directory, where.name, node}}});
  return {};
}

Status FaultDisk::rename(const std::string& from, const std::string& to) {
  const Place source = LATHE_TRY(place(from)), target = LATHE_TRY(place(to));
  const auto node = at(source), replaced = at(target);
  if (!node) return failed("cannot rename " + from, ENOENT);
  if (replaced == node) return {};  // POSIX: two links to one file, nothing happens
  NameChange step{.removed = {{source.directory, source.name, *node}},
                  .added = {{target.directory, target.name, *node}}};
  if (replaced) {
    const bool directory = kind(*node) == Kind::kDirectory, onto_directory = kind(*replaced) == Kind::kDirectory;
    if (directory != onto_directory) return failed("cannot rename " + from, directory ? ENOTDIR : EISDIR);
    if (onto_directory && !names(*replaced).empty()) return failed("cannot rename " + from, ENOTEMPTY);
  }
  change(std::move(step));
  return {};
}

Status FaultDisk::remove(const std::string& path, bool directory) {
  const Place where = LATHE_TRY(place(path));
  const auto node = at(where);
  if (!node) return failed("cannot remove " + path, ENOENT);
  if ((kind(*node) == Kind::kDirectory) != directory)
    return failed("cannot remove " + path, directory ? ENOTDIR : EISDIR);
  if (directory && !names(*node).empty()) return failed("cannot remove " + path, ENOTEMPTY);
  change({.removed = {{where.directory, where.name, *node}}});
  return {};
}

void FaultDisk::sync_names(Inode directory) {
  std::vector<NameChange> left;
  for (NameChange& change : changes_) {
    change.unsynced.erase(directory);
    if (change.unsynced.empty()) {
      apply(change, nodes_, /*synced=*/true);
    } else {
      left.push_back(std::move(change));
    }
  }
  changes_ = std::move(left);
}

void FaultDisk::apply(const Write& write, std::string& contents) {
  if (write.truncates) return contents.clear();
  if (contents.size() < write.offset + write.bytes.size()) contents.resize(write.offset + write.bytes.size());
  contents.replace(write.offset, write.bytes.size(), write.bytes);
}

void FaultDisk::write(Inode file, uint64_t offset, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  Node& node = nodes_.at(file);
  node.unsynced.push_back({.offset = offset, .bytes = {reinterpret_cast<const char*>(bytes.data()), bytes.size()}});
  auto now = std::make_shared<std::string>(*node.now);
  apply(node.unsynced.back(), *now);
  node.now = std::move(now);
}

void FaultDisk::sync(Inode file) {
  Node& node = nodes_.at(file);
  auto durable = std::make_shared<std::string>(*node.durable);
  std::vector<Write> left;
  for (Write& write : node.unsynced) {
    if (write.untracked) {
      left.push_back(std::move(write));
      continue;
    }
    apply(write, *durable);
    // What overwrites a write that a failed sync lost track of brings it back under control.
    for (Write& lost : left) {
      if (write.truncates) lost.bytes.clear();
      const uint64_t begin = std::max(write.offset, lost.offset);
      const uint64_t end = std::min(write.offset + write.bytes.size(), lost.offset + lost.bytes.size());
      if (begin < end)
        lost.bytes.replace(begin - lost.offset, end - begin, write.bytes, begin - write.offset, end - begin);
    }
  }
  std::erase_if(left, [&](const Write& lost) {
    return !lost.truncates &&
           (lost.bytes.empty() || (lost.offset + lost.bytes.size() <= durable->size() &&
                                   durable->compare(lost.offset, lost.bytes.size(), lost.bytes) == 0));
  });
  node.durable = std::move(durable);
  node.unsynced = std::move(left);
}

void FaultDisk::fail_sync(Inode file) {
  for (Write& write : nodes_.at(file).unsynced) write.untracked = true;
}

void FaultDisk::damage(Inode file, uint64_t offset, std::byte mask) {
  Node& node = nodes_.at(file);
  auto flip = [&](Contents& contents) {
    auto changed = std::make_shared<std::string>(*contents);
    if (offset < changed->size()) (*changed)[offset] = static_cast<char>((*changed)[offset] ^ static_cast<char>(mask));
    contents = std::move(changed);
  };
  flip(node.now);
  flip(node.durable);
}

void FaultDisk::make_durable() {
  for (auto& [inode, node] : nodes_) {
    node.durable = node.now;
    node.unsynced.clear();
    node.synced_names = node.names;
  }
  changes_.clear();
}

size_t FaultDisk::pending() const {
  size_t count = changes_.size();
  for (const auto& [inode, node] : nodes_) count += node.unsynced.size();
  return count;
}

// A write of which the power failure left a part: nothing, all, its beginning, some sectors, or only its length.
void FaultDisk::apply_torn(const Write& write, std::string& contents, Choices& choices) {
  enum { kLost, kWhole, kPrefix, kSectors, kZeros, kOutcomes };
  if (write.truncates) {
    if (choices.below(2) == 1) contents.clear();
    return;
  }
  const uint64_t end = write.offset + write.bytes.size();
  const uint64_t first = write.offset / kSector, sectors = (end - 1) / kSector - first + 1;
  const bool grows = end > contents.size();
  // A write inside one sector, of a file that is long enough, is there or not.
  const uint32_t outcome = choices.below(sectors == 1 && !grows ? kPrefix : grows ? kOutcomes : kZeros);
  if (outcome == kLost) return;
  if (outcome == kWhole) return apply(write, contents);
  if (outcome == kPrefix) {
    const uint64_t kept =
        sectors == 1 ? write.bytes.size() / 2
                     : (first + 1 + choices.below(static_cast<uint32_t>(sectors - 1))) * kSector - write.offset;
    return apply({.offset = write.offset, .bytes = write.bytes.substr(0, kept)}, contents);
  }
  if (grows) contents.resize(end);
  if (outcome == kZeros) return;
  for (uint64_t sector = first; sector < first + sectors; ++sector) {
    if (choices.below(2) == 0) continue;
    const uint64_t begin = std::max(sector * kSector, write.offset), stop = std::min((sector + 1) * kSector, end);
    contents.replace(begin, stop - begin, write.bytes, begin - write.offset, stop - begin);
  }
}

FaultDisk FaultDisk::after_power_loss(Choices& choices) const {
  std::map<Inode, Node> nodes = nodes_;
  for (auto& [inode, node] : nodes) node.names = node.synced_names;
  for (const NameChange& change : changes_) {
    if (choices.below(2) == 1) apply(change, nodes, /*synced=*/false);
  }
  FaultDisk disk;
  disk.next_ = next_;
  std::vector<Inode> reachable{kRoot};
  disk.nodes_.clear();
  while (!reachable.empty()) {
    const Inode inode = reachable.back();
    reachable.pop_back();
    if (disk.nodes_.contains(inode)) continue;
    const Node& node = nodes.at(inode);
    Node& kept = disk.nodes_[inode];
    kept = node;
    for (const auto& [name, child] : node.names) reachable.push_back(child);
    if (node.kind != Kind::kFile) continue;
    kept.now = node.durable;
    if (node.unsynced.empty()) continue;
    std::string contents = *node.durable;
    for (const Write& write : node.unsynced) apply_torn(write, contents, choices);
    kept.now = std::make_shared<const std::string>(std::move(contents));
  }
  disk.make_durable();
  return disk;
}

}  // namespace lathe::io
