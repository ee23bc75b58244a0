// Cost: what a pass over a model's layers takes, from its configuration alone: bytes per row and operations.
//
// The one place where the sizes of layers add up; each layer knows its own (layers/). Estimates of memory and plans
// (train/estimate.h, train/backward.h) are made of these.
// Threads: a value. Units: bytes, unless said otherwise.
#pragma once

#include <cstdint>

#include "model/config.h"

namespace lathe::model {

class Cost {
 public:
  // `element`: bytes of the compute dtype. `config` outlives this.
  Cost(const ModelConfig& config, int64_t element) : config_(config), element_(element) {}

  // What autograd keeps of one live row in all layers, about.
  int64_t activations() const;
  // The input of every layer, and the output of the last, of one live row.
  int64_t layer_inputs() const;
  // Keys and values of `rows` rows, and the recurrent states of `sequences` sequences with a snapshot each.
  int64_t context(int64_t rows, int64_t sequences) const;
  // One layer at `rows` rows: what its output is made from. With `graph` also what autograd keeps and their gradients,
  // where a query of the longest sequence sees `longest` keys.
  int64_t layer(int64_t rows, int64_t longest, bool graph) const;
  // Of one row: logits; and the factors of the head's gradient.
  int64_t logits() const;
  int64_t head_factors() const;
  // Of one row: the factor of the embedding's gradient.
  int64_t embedding_factors() const;
  // The head's or the embedding's gradient as a dense fp32 matrix.
  int64_t dense_table() const;

  // Operations: of the head for one row, forward and backward; of attention for one pair of query and key, forward.
  double head_operations() const;
  double attention_operations() const;

 private:
  const ModelConfig& config_;
  int64_t element_;
};

}  // namespace lathe::model
