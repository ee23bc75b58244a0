// WeightStore: the one copy of the model's weights.
//
// A *parameter* is a tensor as compute uses it, possibly fused from several tensors of the checkpoint: qkv_proj holds
// q_proj, k_proj and v_proj as consecutive rows, so that one GEMM serves all three. Each *part* is such a checkpoint
// tensor: a view of consecutive rows. Optimizer and checkpoint see parts; the model sees parameters.
//
// Memory: owned by the store; no weight is ever reallocated or moved (servers hold raw pointers).
// Threads: the table is immutable after load. The numbers may be read by any thread that holds the Gate shared, and
// changed only under the Gate exclusively.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"

namespace lathe::delta {
class ModelDir;
}

namespace lathe::weights {

// A tensor as the checkpoint names it: rows [row_begin, row_begin + rows) of a parameter; all of it for 1-D tensors.
struct Part {
  std::string name;  // e.g. model.layers.0.self_attn.k_proj.weight
  int64_t id = 0;    // position among all parts of the store: the key of random streams and optimizer state
  int64_t row_begin = 0;
  int64_t rows = 0;
  at::Tensor data;  // view into the parameter
};

struct Parameter {
  int64_t id = 0;  // position in WeightStore::parameters()
  std::string name;
  bool vocabulary = false;  // embedding or head: one row per token
  at::Tensor data;          // [out, in] or [n]; bf16 or fp32. Tensors of more dimensions are held flat, as [n]
  std::vector<Part> parts;
};

// What the model needs: a parameter, the checkpoint tensors it is made of, and the shape each must have.
struct ParameterSpec {
  struct PartSpec {
    std::string name;
    std::vector<int64_t> shape;
  };
  std::string name;
  std::vector<PartSpec> parts;
  bool vocabulary = false;

  // As the store holds it: [out, in], or [n] where parts have one dimension or more than two; and the rows (of a flat
  // one: elements) of each part.
  std::vector<int64_t> held_shape() const;
  std::vector<std::pair<std::string, int64_t>> held_parts() const;
};

// Where weights live, and as what.
struct Placement {
  at::Device device = at::kCPU;         // at::kMeta: shapes only, checked like the others; no weight is read
  std::optional<at::ScalarType> dtype;  // by default that of the checkpoint; another is for comparisons only
};

class WeightStore {
 public:
  // What load() would refuse of the files' headers, by name: a missing tensor, another shape than expected, a dtype
  // other than BF16 or F32, parts of one parameter that differ in dtype, matrices that do. Norms and biases may differ
  // from them.
  static Status check(const delta::ModelDir& dir, std::span<const ParameterSpec> specs);

  // Reads every spec'd tensor into owned memory. Refuses what check() does, and NaN or infinite weights.
  static Result<WeightStore> load(const delta::ModelDir& dir, std::span<const ParameterSpec> specs,
                                  const Placement& placement = {});

  // Adds a parameter made of named parts of `rows` rows each, over memory that `data` owns. For tests and importers.
  void add(const std::string& name, at::Tensor data, const std::vector<std::pair<std::string, int64_t>>& parts,
           bool vocabulary);

  // The checkpoint stores the numbers of `part` under `name` too, as a head beside the embedding that it is tied to:
  // find_part(name) is that part, so that whoever writes the checkpoint keeps both in step.
  void alias(const std::string& name, std::string_view part);

  // Whether reload() will find every tensor and can read it: reads all of them, a piece at a time, and changes nothing.
  // Needs no Gate. What was read waits in the system's cache, if it has room, so that reload() holds the Gate shortly.
  Status check_reload(const delta::ModelDir& dir) const;

  // Reads all weights again, in place, from a directory with the same tensors. Hold the Gate exclusively. On failure
  // some weights may already be replaced: read again from a good directory.
  Status reload(const delta::ModelDir& dir);

  std::span<const Parameter> parameters() const { return parameters_; }
  const Parameter& parameter(std::string_view name) const;        // must exist
  const Part* find_part(std::string_view checkpoint_name) const;  // an alias counts; null if not in the store

  int64_t part_count() const { return part_count_; }
  int64_t element_count() const { return element_count_; }
  int64_t byte_count() const { return byte_count_; }

 private:
  std::vector<Parameter> parameters_;
  std::unordered_map<std::string, size_t> by_name_;
  std::unordered_map<std::string, std::pair<size_t, size_t>> part_by_name_;
  int64_t part_count_ = 0;
  int64_t element_count_ = 0;
  int64_t byte_count_ = 0;
};

}  // namespace lathe::weights
