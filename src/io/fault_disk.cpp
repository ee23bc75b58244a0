#include "io/fault_disk.h"

#include <algorithm>
#include <cerrno>

#include "io/fault_env.h"

namespace lathe::io {
namespace {

constexpr FaultDisk::Inode kRoot = 0;
constexpr int kMaxLinks = 16;

Error failed(std::string what, int native) {
  Error error = io_error(std::move(what), native);
  if (native == ENOENT) error.code = Code::kNotFound;
  return error;
}

// The next name of a path, which is cut off; empty at the end.
std::string_view take_name(std::string_view& path) {
  for (;;) {
    path.remove_prefix(std::min(path.find_first_not_of('/'), path.size()));
    const std::string_view name = path.substr(0, path.find('/'));
    path.remove_prefix(name.size());
    if (name != ".") return name;
  }
}

bool has_more(std::string_view path) {
  return !take_name(path).empty();
}

std::shared_ptr<const std::string> empty_contents() {
  static const auto empty = std::make_shared<const std::string>();
  return empty;
}

// Beyond the end the contents grow.
void put(std::string& contents, uint64_t offset, std::string_view bytes) {
  if (contents.size() < offset + bytes.size()) contents.resize(offset + bytes.size());
  contents.replace(offset, bytes.size(), bytes);
}

}  // namespace

FaultDisk::FaultDisk() {
  add({.kind = Kind::kDirectory});
}

FaultDisk::Node& FaultDisk::own(Nodes& nodes, Inode inode) {
  auto copy = std::make_shared<Node>(*nodes[inode]);
  Node& node = *copy;
  nodes[inode] = std::move(copy);
  return node;
}

FaultDisk::Inode FaultDisk::add(Node node) {
  if (node.kind == Kind::kFile) node.now = node.durable = empty_contents();
  if (node.kind == Kind::kDirectory) node.names = node.synced_names = std::make_shared<const Names>();
  nodes_.push_back(std::make_shared<const Node>(std::move(node)));
  return nodes_.size() - 1;
}

template <class Visit>
void FaultDisk::each_name(Visit visit) const {
  for (Inode inode = 0; inode < nodes_.size(); ++inode) {
    if (!nodes_[inode] || kind(inode) != Kind::kDirectory) continue;
    for (const auto& [name, child] : names(inode)) visit(inode, child);
  }
}

FaultDisk::Inode FaultDisk::parent(Inode directory) const {
  Inode found = kRoot;
  each_name([&](Inode inode, Inode child) { found = child == directory ? inode : found; });
  return found;
}

Result<FaultDisk::Inode> FaultDisk::walk(Inode from, std::string_view path, bool follow, int depth) const {
  const auto stopped = [&](int why) { return failed("cannot open " + std::string(path), why); };
  if (depth > kMaxLinks) return stopped(ELOOP);
  Inode inode = path.starts_with('/') ? kRoot : from;
  std::string_view left = path;
  for (std::string_view name = take_name(left); !name.empty(); name = take_name(left)) {
    if (kind(inode) != Kind::kDirectory) return stopped(ENOTDIR);
    if (name == "..") {
      inode = parent(inode);
      continue;
    }
    const auto found = names(inode).find(name);
    if (found == names(inode).end()) return stopped(ENOENT);
    const Node& next = node(found->second);
    if (next.kind == Kind::kLink && (follow || has_more(left))) {
      inode = LATHE_TRY(walk(inode, next.target, true, depth + 1));
    } else {
      inode = found->second;
    }
  }
  return inode;
}

Result<FaultDisk::Inode> FaultDisk::find(const std::string& path, bool follow) const {
  return walk(kRoot, path, follow, 0);
}

Result<FaultDisk::Place> FaultDisk::place(const std::string& path) const {
  std::string_view left = path, last;
  for (std::string_view name = take_name(left); !name.empty(); name = take_name(left)) last = name;
  if (last.empty()) return failed("cannot change " + path, EBUSY);
  const std::string_view parent(path.data(), static_cast<size_t>(last.data() - path.data()));
  const Inode directory = LATHE_TRY(walk(kRoot, parent, /*follow=*/true, 0));
  if (kind(directory) != Kind::kDirectory) return failed("cannot change " + path, ENOTDIR);
  return Place{directory, std::string(last)};
}

std::optional<FaultDisk::Inode> FaultDisk::at(const Place& place) const {
  const auto& entries = names(place.directory);
  const auto found = entries.find(place.name);
  if (found == entries.end()) return std::nullopt;
  return found->second;
}

uint64_t FaultDisk::links(Inode node) const {
  uint64_t count = 0;
  each_name([&](Inode, Inode child) { count += child == node; });
  return count;
}

uint64_t FaultDisk::used() const {
  std::set<Inode> files;
  each_name([&](Inode, Inode child) {
    if (kind(child) == Kind::kFile) files.insert(child);
  });
  uint64_t bytes = 0;
  for (const Inode file : files) bytes += contents(file)->size();
  return bytes;
}

void FaultDisk::apply(const NameChange& change, Nodes& nodes, bool synced) {
  const auto edit = [&](Inode directory, const auto& step) {
    Node& node = own(nodes, directory);
    auto& shared = synced ? node.synced_names : node.names;
    Names names = *shared;
    step(names);
    shared = std::make_shared<const Names>(std::move(names));
  };
  for (const auto& entry : change.removed) {
    edit(entry.directory, [&](Names& names) {
      // The name may by now belong to something else: an earlier change may be lost where a later one is kept.
      const auto found = names.find(entry.name);
      if (found != names.end() && found->second == entry.node) names.erase(found);
    });
  }
  for (const auto& entry : change.added) edit(entry.directory, [&](Names& names) { names[entry.name] = entry.node; });
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
    if (contents(*existing)->empty()) return *existing;
    Node& file = own(*existing);
    file.unsynced.push_back({.bytes = empty_contents(), .truncates = true});
    file.now = empty_contents();
    return *existing;
  }
  const Place where = LATHE_TRY(place(path));
  const Inode inode = add({.kind = Kind::kFile});
  change({.added = {{where.directory, where.name, inode}}});
  return inode;
}

Status FaultDisk::make(const std::string& path, Kind kind, const std::string& target) {
  const Place where = LATHE_TRY(place(path));
  if (at(where)) return failed("cannot make " + path, EEXIST);
  const Inode inode = add({.kind = kind, .target = target});
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
  put(contents, write.offset, *write.bytes);
}

void FaultDisk::write(Inode file, uint64_t offset, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  Node& node = own(file);
  node.unsynced.push_back(
      {.offset = offset,
       .bytes = std::make_shared<const std::string>(reinterpret_cast<const char*>(bytes.data()), bytes.size())});
  std::string now;
  now.reserve(std::max(node.now->size(), offset + bytes.size()));
  now = *node.now;
  apply(node.unsynced.back(), now);
  node.now = std::make_shared<const std::string>(std::move(now));
}

void FaultDisk::sync(Inode file) {
  Node& node = own(file);
  if (std::none_of(node.unsynced.begin(), node.unsynced.end(), [](const Write& write) { return write.untracked; })) {
    node.durable = node.now;
    node.unsynced.clear();
    return;
  }
  std::string durable = *node.durable;
  std::vector<Write> left;
  for (Write& write : node.unsynced) {
    if (write.untracked) {
      left.push_back(std::move(write));
      continue;
    }
    apply(write, durable);
    // What overwrites a write that a failed sync lost track of brings it back under control.
    for (Write& lost : left) {
      std::string bytes = write.truncates ? std::string() : *lost.bytes;
      const uint64_t begin = std::max(write.offset, lost.offset);
      const uint64_t end = std::min(write.offset + write.bytes->size(), lost.offset + bytes.size());
      if (begin < end) bytes.replace(begin - lost.offset, end - begin, *write.bytes, begin - write.offset, end - begin);
      lost.bytes = std::make_shared<const std::string>(std::move(bytes));
    }
  }
  std::erase_if(left, [&](const Write& lost) {
    const std::string& bytes = *lost.bytes;
    return !lost.truncates && (bytes.empty() || (lost.offset + bytes.size() <= durable.size() &&
                                                 durable.compare(lost.offset, bytes.size(), bytes) == 0));
  });
  node.durable = std::make_shared<const std::string>(std::move(durable));
  node.unsynced = std::move(left);
}

void FaultDisk::fail_sync(Inode file) {
  for (Write& write : own(file).unsynced) write.untracked = true;
}

void FaultDisk::damage(Inode file, uint64_t offset, std::byte mask) {
  Node& node = own(file);
  auto flip = [&](Contents& contents) {
    auto changed = std::make_shared<std::string>(*contents);
    if (offset < changed->size()) (*changed)[offset] = static_cast<char>((*changed)[offset] ^ static_cast<char>(mask));
    contents = std::move(changed);
  };
  flip(node.now);
  flip(node.durable);
}

void FaultDisk::make_durable() {
  for (Inode inode = 0; inode < nodes_.size(); ++inode) {
    const auto& shared = nodes_[inode];
    if (!shared ||
        (shared->now == shared->durable && shared->unsynced.empty() && shared->names == shared->synced_names))
      continue;
    Node& node = own(inode);
    node.durable = node.now;
    node.unsynced.clear();
    node.synced_names = node.names;
  }
  changes_.clear();
}

size_t FaultDisk::pending() const {
  size_t count = changes_.size();
  for (const auto& node : nodes_) count += node ? node->unsynced.size() : 0;
  return count;
}

std::string FaultDisk::image() const {
  std::string image;
  std::vector<std::optional<size_t>> places(nodes_.size());
  add_to_image(kRoot, places, image);
  return image;
}

// A node that was there under another name is a hard link: the place of the first is told instead.
void FaultDisk::add_to_image(Inode inode, std::vector<std::optional<size_t>>& places, std::string& image) const {
  const auto add_text = [&](const std::string& text) {
    image += std::to_string(text.size()) + ' ';
    image += text;
  };
  if (places[inode]) {
    image += 'h' + std::to_string(*places[inode]) + ' ';
    return;
  }
  places[inode] = image.size();
  switch (kind(inode)) {
    case Kind::kFile:
      image += 'f';
      return add_text(*contents(inode));
    case Kind::kLink:
      image += 'l';
      return add_text(target(inode));
    case Kind::kDirectory:
      image += 'd' + std::to_string(names(inode).size()) + ' ';
      for (const auto& [name, child] : names(inode)) {
        add_text(name);
        add_to_image(child, places, image);
      }
  }
}

// A write of which the power failure left a part: nothing, all, its beginning, some sectors, or only its length.
void FaultDisk::apply_torn(const Write& write, std::string& contents, Choices& choices) {
  enum { kLost, kWhole, kPrefix, kSectors, kZeros, kOutcomes };
  if (write.truncates) {
    if (choices.below(2) == 1) contents.clear();
    return;
  }
  const uint64_t end = write.offset + write.bytes->size();
  const uint64_t first = write.offset / kSector, sectors = (end - 1) / kSector - first + 1;
  const bool grows = end > contents.size();
  // A write inside one sector, of a file that is long enough, is there or not.
  const uint32_t outcome = choices.below(sectors == 1 && !grows ? kPrefix : grows ? kOutcomes : kZeros);
  if (outcome == kLost) return;
  if (outcome == kWhole) return apply(write, contents);
  if (outcome == kPrefix) {
    const uint64_t kept =
        sectors == 1 ? write.bytes->size() / 2
                     : (first + 1 + choices.below(static_cast<uint32_t>(sectors - 1))) * kSector - write.offset;
    return put(contents, write.offset, std::string_view(*write.bytes).substr(0, kept));
  }
  if (grows) contents.resize(end);
  if (outcome == kZeros) return;
  for (uint64_t sector = first; sector < first + sectors; ++sector) {
    if (choices.below(2) == 0) continue;
    const uint64_t begin = std::max(sector * kSector, write.offset), stop = std::min((sector + 1) * kSector, end);
    contents.replace(begin, stop - begin, *write.bytes, begin - write.offset, stop - begin);
  }
}

FaultDisk FaultDisk::after_power_loss(Choices& choices) const {
  Nodes nodes = nodes_;
  for (Inode inode = 0; inode < nodes.size(); ++inode) {
    if (nodes[inode] && nodes[inode]->names != nodes[inode]->synced_names) {
      Node& node = own(nodes, inode);
      node.names = node.synced_names;
    }
  }
  for (const NameChange& change : changes_) {
    if (choices.below(2) == 1) apply(change, nodes, /*synced=*/false);
  }
  FaultDisk disk;
  disk.nodes_.assign(nodes.size(), nullptr);
  std::vector<Inode> reachable{kRoot};
  while (!reachable.empty()) {
    const Inode inode = reachable.back();
    reachable.pop_back();
    if (disk.nodes_[inode]) continue;
    disk.nodes_[inode] = nodes[inode];
    if (disk.kind(inode) == Kind::kDirectory) {
      for (const auto& [name, child] : disk.names(inode)) reachable.push_back(child);
    }
    if (disk.node(inode).now == disk.node(inode).durable && disk.node(inode).unsynced.empty()) continue;
    Node& file = disk.own(inode);
    std::string contents = *file.durable;
    for (const Write& write : file.unsynced) apply_torn(write, contents, choices);
    file.now = std::make_shared<const std::string>(std::move(contents));
  }
  disk.make_durable();
  return disk;
}

}  // namespace lathe::io
