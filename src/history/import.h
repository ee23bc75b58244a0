// Import: the tensors of another model directory, so that sync() makes them a version of this one. A source is whatever
// a trainer left, and is not trusted: every tensor is compared, and every number looked at.
//
// Threads: any, once open.
// Memory: 4 MiB per thread for tensors of another type.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "delta/model_dir.h"
#include "delta/source.h"

namespace lathe::history {

// Two names of the same numbers: a head, and the embedding that it is tied to.
struct Tie {
  std::string head, embedding;
};

struct ImportOptions {
  bool round = false;       // take over tensors in a wider type, rounded to the nearest number of this directory's type
  bool not_finite = false;  // take over NaN and infinite numbers, as the masks of some models hold them
  std::optional<Tie> tie;
};

class DirectoryTensors final : public delta::TensorReader {
 public:
  // `directory` as a source for `like`. kInvalidArgument, naming it, for a tensor that only one of the two has, has in
  // another shape, or has in a type whose numbers are not all numbers of the other's (unless `round`); and for a head
  // of the source that is not the embedding it is tied to. A head that only one of the two stores beside its embedding
  // is that embedding.
  static Result<DirectoryTensors> open(io::Env& env, const std::string& directory, const std::string& like,
                                       ImportOptions options = {});

  std::optional<uint64_t> size(std::string_view tensor) const override;
  // kCorruption, naming the tensor, for NaN and infinite numbers, as they are or once they are rounded, unless
  // `not_finite`.
  Status read(std::string_view tensor, uint64_t offset, std::span<std::byte> out) const override;

 private:
  struct Source {
    std::string name;           // in the other directory
    delta::Dtype from{}, to{};  // there and here
    uint64_t elements = 0;
  };

  DirectoryTensors(delta::ModelDir dir, std::string directory, bool not_finite)
      : dir_(std::move(dir)), directory_(std::move(directory)), not_finite_(not_finite) {}
  Status add(const delta::TensorInfo& info, const std::string& like, const ImportOptions& options);
  Status check_rest(const delta::ModelDir& model, const std::string& like, const ImportOptions& options) const;

  delta::ModelDir dir_;
  std::string directory_;
  bool not_finite_;
  std::map<std::string, Source, std::less<>> sources_;  // by the name here
};

}  // namespace lathe::history
