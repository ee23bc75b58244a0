// Batch: several examples laid out as packed rows, and the live rows among them.
//
// Live rows are numbered 0 .. n-1 over all examples in order; everything a backward pass needs is indexed by that
// number. Rows after the last live row of an example are not computed: nothing depends on them.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "data/example.h"
#include "model/model.h"

namespace lathe::train {

// Live rows [begin, begin + count) are positions position .. of sequence `sequence`.
struct LiveRun {
  int64_t sequence = 0;
  int64_t begin = 0;
  int64_t count = 0;
  int64_t position = 0;
};

struct Batch {
  std::vector<std::vector<int64_t>> tokens;  // per sequence, up to its last live row
  std::vector<LiveRun> live;
  int64_t live_rows = 0;
  at::Tensor live_ids;  // [live_rows] int64: the token each live row reads
  at::Tensor targets;   // [live_rows] int64: the token each live row predicts
  at::Tensor weights;   // [live_rows] fp32: weight of that prediction; 0 where only keys and values matter
  double total_weight = 0;
  int64_t total_rows = 0;  // context and live
};

// `examples` must be valid (data::validate); live[i] are the live segments of examples[i], ordered and disjoint, each
// with a next token to predict.
Batch pack(std::span<const data::Example> examples, std::span<const std::vector<data::Segment>> live);
Batch pack(std::span<const data::Example> examples, data::ContextMode mode);  // data::live_segments of each

// What one pass over a batch without gradient keeps.
struct LiveForward {
  std::vector<model::SequenceState> states;  // one per live run: its sequence's state as the run begins
  std::vector<at::Tensor> inputs;         // [layers + 1] of [live_rows, D]: input of each layer, then the last output
  std::vector<model::SequenceRows> runs;  // the live rows as runs over `states`
};

// Runs all rows through the model in chunks of at most `chunk_rows`, keeping each layer's input of the live rows. With
// `keep_layers` false only the last output is kept (inputs then has one entry, states and runs none).
LiveForward forward_live(const model::Model& model, const Batch& batch, int64_t chunk_rows, bool keep_layers);

// Runs the context alone, for live rows that the caller will run: `inputs` then has one entry, that of the first layer.
// Each sequence has one live run at most (has_single_runs).
LiveForward forward_context(const model::Model& model, const Batch& batch, int64_t chunk_rows);
bool has_single_runs(const Batch& batch);

}  // namespace lathe::train
