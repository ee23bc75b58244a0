// FaultDisk: what FaultEnv's file system holds, what of it is durable, and what a power failure may make of the rest.
// The model is described in fault_env.h.
//
// Threads: one at a time.
// Memory: copies share every node, and its names and contents, until one of them changes it: tests take copies by the
// million.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lathe::io {

class Choices;

class FaultDisk {
 public:
  using Inode = uint64_t;
  using Names = std::map<std::string, Inode, std::less<>>;
  enum class Kind { kFile, kDirectory, kLink };
  static constexpr uint64_t kSector = 512;

  FaultDisk();  // an empty root directory

  // Follows links everywhere but, unless `follow`, in the last name. kNotFound.
  Result<Inode> find(const std::string& path, bool follow = true) const;
  Kind kind(Inode inode) const { return node(inode).kind; }
  uint64_t links(Inode node) const;  // names that lead to it now
  const std::shared_ptr<const std::string>& contents(Inode file) const { return node(file).now; }
  const std::string& target(Inode link) const { return node(link).target; }
  const Names& names(Inode directory) const { return *node(directory).names; }
  uint64_t used() const;  // bytes in files

  // Changes of names. Missing parents, and names that are in the way, are errors as in POSIX.
  Result<Inode> create(const std::string& path);  // or truncates
  Status make(const std::string& path, Kind kind, const std::string& target);
  Status link(const std::string& existing, const std::string& name);
  Status rename(const std::string& from, const std::string& to);
  Status remove(const std::string& path, bool directory);
  void sync_names(Inode directory);

  // Changes of contents; beyond the end the file grows.
  void write(Inode file, uint64_t offset, std::span<const std::byte> bytes);
  void sync(Inode file);
  void fail_sync(Inode file);
  void damage(Inode file, uint64_t offset, std::byte mask);

  void make_durable();
  size_t pending() const;
  std::string image() const;
  // What the disk may hold when the power comes back. Everything in it is durable.
  FaultDisk after_power_loss(Choices& choices) const;

 private:
  using Contents = std::shared_ptr<const std::string>;

  struct Write {
    uint64_t offset = 0;
    Contents bytes;
    bool truncates = false;  // to nothing, in place of bytes
    bool untracked = false;  // a sync of it failed
  };
  struct Node {
    Kind kind = Kind::kFile;
    std::string target;                                // of a link
    Contents now, durable;                             // of a file
    std::vector<Write> unsynced;                       // of a file, in order; between durable and now
    std::shared_ptr<const Names> names, synced_names;  // of a directory
  };
  using Nodes = std::vector<std::shared_ptr<const Node>>;  // by inode; null for what a power failure took
  // One step that happens wholly or not at all: entries that go, then entries that come.
  struct NameChange {
    struct Entry {
      Inode directory;
      std::string name;
      Inode node;
    };
    std::vector<Entry> removed, added;
    std::set<Inode> unsynced;  // directories that must still be synced
  };

  struct Place {
    Inode directory;
    std::string name;
  };
  const Node& node(Inode inode) const { return *nodes_[inode]; }
  static Node& own(Nodes& nodes, Inode inode);  // a copy in place of the shared one
  Node& own(Inode inode) { return own(nodes_, inode); }
  Inode add(Node node);
  template <class Visit>
  void each_name(Visit visit) const;  // visit(directory, what it names)
  Inode parent(Inode directory) const;
  void add_to_image(Inode inode, std::vector<std::optional<size_t>>& places, std::string& image) const;
  Result<Inode> walk(Inode from, std::string_view path, bool follow, int depth) const;
  Result<Place> place(const std::string& path) const;  // of a name that need not exist
  std::optional<Inode> at(const Place& place) const;
  void change(NameChange change);
  static void apply(const NameChange& change, Nodes& nodes, bool synced);
  static void apply(const Write& write, std::string& contents);
  static void apply_torn(const Write& write, std::string& contents, Choices& choices);

  Nodes nodes_;
  std::vector<NameChange> changes_;  // in order
};

}  // namespace lathe::io
