#include "train/batch.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace lathe::train {
namespace {

// A stretch of rows of the current chunk that is live, and where it goes among the live rows.
struct Copy {
  int64_t from = 0, to = 0, count = 0;
};

// The next at most `limit` rows of the batch as one packed forward pass. `sequence` and `position` say where the last
// chunk stopped and are moved on.
struct Chunk {
  std::vector<int64_t> ids;
  std::vector<model::Run> runs;
  std::vector<Copy> copies;

  Chunk(const Batch& batch, std::vector<model::SequenceState>& states, size_t& sequence, int64_t& position,
        int64_t limit) {
    while (sequence < batch.tokens.size() && static_cast<int64_t>(ids.size()) < limit) {
      const std::vector<int64_t>& tokens = batch.tokens[sequence];
      const auto begin = static_cast<int64_t>(ids.size());
      const int64_t count = std::min(limit - begin, static_cast<int64_t>(tokens.size()) - position);
      runs.push_back({.begin = begin, .count = count, .position = position, .state = &states[sequence]});
      ids.insert(ids.end(), tokens.begin() + position, tokens.begin() + position + count);
      add_copies(batch, static_cast<int64_t>(sequence), position, count, begin);
      position += count;
      if (position == static_cast<int64_t>(tokens.size())) {
        ++sequence;
        position = 0;
      }
    }
  }

  void add_copies(const Batch& batch, int64_t sequence, int64_t position, int64_t count, int64_t begin) {
    for (const LiveRun& live : batch.live) {
      if (live.sequence != sequence) continue;
      const int64_t first = std::max(position, live.position);
      const int64_t last = std::min(position + count, live.position + live.count);
      if (first < last) copies.push_back({begin + first - position, live.begin + first - live.position, last - first});
    }
  }
};

}  // namespace

Batch pack(std::span<const data::Example> examples, data::ContextMode mode) {
  std::vector<std::vector<data::Segment>> live;
  for (const data::Example& example : examples) live.push_back(data::live_segments(example, mode));
  return pack(examples, live);
}

Batch pack(std::span<const data::Example> examples, std::span<const std::vector<data::Segment>> live) {
  Batch batch;
  std::vector<int64_t> ids, targets;
  std::vector<float> weights;
  for (size_t sequence = 0; sequence < examples.size(); ++sequence) {
    const data::Example& example = examples[sequence];
    const std::vector<data::Segment>& segments = live[sequence];
    batch.tokens.emplace_back(example.tokens.begin(), example.tokens.begin() + segments.back().end);
    batch.total_rows += segments.back().end;
    for (const data::Segment& segment : segments) {
      batch.live.push_back(
          {static_cast<int64_t>(sequence), static_cast<int64_t>(ids.size()), segment.size(), segment.begin});
      for (int64_t p = segment.begin; p < segment.end; ++p) {
        ids.push_back(example.tokens[p]);
        targets.push_back(example.tokens[p + 1]);
        weights.push_back(example.weights[p + 1]);
      }
    }
  }
  batch.live_rows = static_cast<int64_t>(ids.size());
  for (const float weight : weights) batch.total_weight += weight;
  batch.live_ids = at::tensor(ids, at::kLong);
  batch.targets = at::tensor(targets, at::kLong);
  batch.weights = at::tensor(weights, at::kFloat);
  return batch;
}

LiveForward forward_live(const model::Model& model, const Batch& batch, int64_t chunk_rows, bool keep_layers) {
  const int64_t layers = model.config().layers;
  LiveForward out;
  for (const auto& tokens : batch.tokens) out.states.push_back(model.new_state(static_cast<int64_t>(tokens.size())));
  out.inputs.resize(keep_layers ? layers + 1 : 1);
  for (at::Tensor& input : out.inputs)
    input = at::empty({batch.live_rows, model.config().hidden_size}, model.options());

  size_t sequence = 0;
  int64_t position = 0;
  while (sequence < batch.tokens.size()) {
    const Chunk chunk(batch, out.states, sequence, position, chunk_rows);
    const auto keep = [&](int64_t layer, const at::Tensor& x) {
      if (!keep_layers && layer != layers) return;
      at::Tensor& input = out.inputs[keep_layers ? layer : 0];
      for (const Copy& copy : chunk.copies)
        input.narrow(0, copy.to, copy.count).copy_(x.narrow(0, copy.from, copy.count));
    };
    model.forward(at::tensor(chunk.ids, at::kLong).to(model.options().device()), chunk.runs, keep);
  }
  for (const LiveRun& live : batch.live) {
    out.runs.push_back(
        {.begin = live.begin, .count = live.count, .position = live.position, .state = &out.states[live.sequence]});
  }
  return out;
}

}  // namespace lathe::train
