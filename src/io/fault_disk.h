// FaultDisk: what FaultEnv's file system holds, what of it is durable, and what a power failure may make of the rest.
// The model is described in fault_env.h.
//
// Threads: one at a time.
// Memory: contents are shared between copies until written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace lathe::io {

class Choices;

class FaultDisk {
 public:
  using Inode = uint64_t;
  enum class Kind { kFile, kDirectory, kLink };
  static constexpr uint64_t kSector = 512;

  FaultDisk();  // an empty root directory

  // Follows links everywhere but, unless `follow`, in the last name. kNotFound.
  Result<Inode> find(const std::string& path, bool follow = true) const;
  Kind kind(Inode node) const { return nodes_.at(node).kind; }
  uint64_t links(Inode node) const;  // names that lead to it now
  const std::shared_ptr<const std::string>& contents(Inode file) const { return nodes_.at(file).now; }
  const std::string& target(Inode link) const { return nodes_.at(link).target; }
  const std::map<std::string, Inode>& names(Inode directory) const { return nodes_.at(directory).names; }
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
  // What the disk may hold when the power comes back. Everything in it is durable.
  FaultDisk after_power_loss(Choices& choices) const;

 private:
  using Contents = std::shared_ptr<const std::string>;

  struct Write {
    uint64_t offset = 0;
    std::string bytes;
    bool truncates = false;  // to nothing, in place of bytes
    bool untracked = false;  // a sync of it failed
  };
  struct Node {
    Kind kind = Kind::kFile;
    std::string target;                                // of a link
    Contents now, durable;                             // of a file
    std::vector<Write> unsynced;                       // of a file, in order; between durable and now
    std::map<std::string, Inode> names, synced_names;  // of a directory
  };
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
  Inode parent(Inode directory) const;
  Result<Inode> walk(Inode from, const std::string& path, bool follow, int depth) const;
  Result<Place> place(const std::string& path) const;  // of a name that need not exist
  std::optional<Inode> at(const Place& place) const;
  void change(NameChange change);
  static void apply(const NameChange& change, std::map<Inode, Node>& nodes, bool synced);
  static void apply(const Write& write, std::string& contents);
  static void apply_torn(const Write& write, std::string& contents, Choices& choices);

  std::map<Inode, Node> nodes_;
  std::vector<NameChange> changes_;  // in order
  Inode next_ = 2;
};

}  // namespace lathe::io
