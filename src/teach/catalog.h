// Catalog: the versions that can be restored, with what the store knows of how they came about.
//
// The chain of deltas says which there are; the store, which may have been lost, adds lessons and losses. Steps that
// became durable together are one entry, because only their last can be restored.
// Threads: any; reads file names and the ends of delta files, also while a server runs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/env.h"
#include "store/store.h"

namespace lathe::teach {

struct CatalogEntry {
  int64_t version = 0;
  int64_t first = 0;                     // the first of the steps in it; for one step, and for a rollback, `version`
  std::string kind;                      // learn, train, import, rollback, redo, adopt; "base": what was there before
  std::vector<std::string> jobs = {};    // lessons, in order
  std::optional<int64_t> restores = {};  // of a rollback or redo
  std::string note = {};                 // for people
  int64_t steps = 0;
  double created_at = 0;        // seconds since 1970
  double loss = 0;              // before the first step
  double learning_rate = 0;     // of the last step
  double changed_fraction = 0;  // of the last step
  bool durable = true;
};

struct CatalogPage {
  std::vector<CatalogEntry> entries;  // newest first
  bool more = false;
};

// `live`: the version of the live weights. At most `limit` entries older than version `before`, if there is one.
Result<CatalogPage> list_versions(io::Env& env, const std::string& directory, store::Store& store, int64_t live,
                                  int64_t limit, std::optional<int64_t> before);

}  // namespace lathe::teach
