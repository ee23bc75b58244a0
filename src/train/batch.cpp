#include "train/batch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

namespace lathe::train {
namespace {

// A stretch of rows of the current chunk that is live, and where it goes among the live rows.
struct Copy {
  int64_t from = 0, to = 0, count = 0;
};

// All rows of a batch in order, as packed forward passes.
class Walk {
 public:
  Walk(const model::Model& model, const Batch& batch)
      : batch_(batch), cut_(model.config().has_delta()), positions_(batch.tokens.size(), 0) {
    for (const auto& tokens : batch.tokens) {
      states.push_back(model.new_state(std::ssize(tokens)));
      ends_.push_back(std::ssize(tokens));
    }
  }

  // Ends each sequence where its live rows begin.
  void leave_out_live_rows() {
    for (const LiveRun& live : batch_.live) ends_[live.sequence] = std::min(ends_[live.sequence], live.position);
  }

  // The next at most `limit` rows; false at the end. A chunk holds at most one run of each sequence.
  bool next(int64_t limit) {
    ids.clear(), runs.clear(), copies.clear();
    for (size_t sequence = 0; sequence < positions_.size() && std::ssize(ids) < limit; ++sequence) {
      const std::vector<int64_t>& tokens = batch_.tokens[sequence];
      int64_t& position = positions_[sequence];
      const int64_t end = std::min(next_cut(sequence), position + limit - std::ssize(ids));
      if (position == end) continue;
      add_copies(static_cast<int64_t>(sequence), position, end);
      runs.push_back(
          {.begin = std::ssize(ids), .count = end - position, .position = position, .state = &states[sequence]});
      ids.insert(ids.end(), tokens.begin() + position, tokens.begin() + end);
      position = end;
    }
    return !ids.empty();
  }

  std::vector<model::SequenceState> states;  // one per sequence
  std::vector<int64_t> ids;
  std::vector<model::SequenceRows> runs;
  std::vector<Copy> copies;

 private:
  // A recurrence has no past states to look up: where a live run begins, the walk has to stop for a snapshot.
  int64_t next_cut(size_t sequence) const {
    int64_t cut = ends_[sequence];
    for (const LiveRun& live : batch_.live) {
      if (cut_ && live.sequence == static_cast<int64_t>(sequence) && live.position > positions_[sequence])
        cut = std::min(cut, live.position);
    }
    return cut;
  }

  void add_copies(int64_t sequence, int64_t position, int64_t end) {
    for (const LiveRun& live : batch_.live) {
      if (live.sequence != sequence) continue;
      const int64_t first = std::max(position, live.position), last = std::min(end, live.position + live.count);
      if (first < last) {
        copies.push_back({.from = std::ssize(ids) + first - position,
                          .to = live.begin + first - live.position,
                          .count = last - first});
      }
    }
  }

  const Batch& batch_;
  bool cut_;
  std::vector<int64_t> positions_, ends_;
};

// The live rows as runs over out.states.
void add_runs(const Batch& batch, LiveForward& out) {
  for (size_t i = 0; i < batch.live.size(); ++i) {
    const LiveRun& live = batch.live[i];
    out.runs.push_back({.begin = live.begin, .count = live.count, .position = live.position, .state = &out.states[i]});
  }
}

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
  out.inputs.resize(keep_layers ? layers + 1 : 1);
  for (at::Tensor& input : out.inputs)
    input = at::empty({batch.live_rows, model.config().hidden_size}, model.options());
  Walk walk(model, batch);
  const auto keep = [&](int64_t layer, const at::Tensor& x) {
    if (!keep_layers && layer != layers) return;
    at::Tensor& input = out.inputs[keep_layers ? layer : 0];
    for (const Copy& copy : walk.copies) input.narrow(0, copy.to, copy.count).copy_(x.narrow(0, copy.from, copy.count));
  };
  std::vector<std::optional<model::SequenceState>> snapshots(batch.live.size());
  while (walk.next(chunk_rows)) {
    for (size_t i = 0; keep_layers && i < snapshots.size(); ++i) {
      for (const model::SequenceRows& run : walk.runs) {
        const LiveRun& live = batch.live[i];
        const bool begins = run.state == &walk.states[live.sequence] && run.position == live.position;
        if (begins) snapshots[i] = *run.state;
      }
    }
    model.forward(at::tensor(walk.ids, at::kLong).to(model.options().device()), walk.runs, keep);
  }
  if (!keep_layers) return out;
  for (size_t i = 0; i < snapshots.size(); ++i) {
    // Keys and values can be looked up at any time: the last state serves where nothing stopped for a snapshot.
    out.states.push_back(snapshots[i] ? std::move(*snapshots[i]) : walk.states[batch.live[i].sequence]);
  }
  add_runs(batch, out);
  return out;
}

bool has_single_runs(const Batch& batch) {
  for (size_t i = 1; i < batch.live.size(); ++i) {
    if (batch.live[i].sequence == batch.live[i - 1].sequence) return false;
  }
  return true;
}

LiveForward forward_context(const model::Model& model, const Batch& batch, int64_t chunk_rows) {
  LATHE_CHECK(has_single_runs(batch));
  Walk walk(model, batch);
  walk.leave_out_live_rows();
  while (walk.next(chunk_rows)) model.forward(at::tensor(walk.ids, at::kLong).to(model.options().device()), walk.runs);
  LiveForward out;
  for (const LiveRun& live : batch.live) out.states.push_back(std::move(walk.states[live.sequence]));
  add_runs(batch, out);
  out.inputs = {model.embed(batch.live_ids.to(model.options().device()))};
  return out;
}

}  // namespace lathe::train
