#include "reference_case.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "delta/safetensors.h"
#include "train/backward.h"

namespace lathe::parity {
namespace {

// Adds what the sink collected to dense gradients per checkpoint tensor.
void add_gradients(const weights::WeightStore& store, const weights::GradientSet& set, Tensors& sums) {
  for (const auto& parameter : store.parameters()) {
    at::Tensor dense = at::zeros(parameter.data.sizes(), parameter.data.options().dtype(at::kDouble));
    const auto& matrix = set.matrices[parameter.id];
    for (size_t i = 0; i < matrix.x.size(); ++i)
      dense += at::mm(matrix.dy[i].to(at::kDouble).t(), matrix.x[i].to(at::kDouble));
    for (size_t i = 0; i < matrix.ids.size(); ++i) dense.index_add_(0, matrix.ids[i], matrix.dx[i].to(at::kDouble));
    for (const at::Tensor& sum : {matrix.dense, set.vectors[parameter.id]}) {
      if (sum.defined()) dense += sum;
    }
    for (const auto& part : parameter.parts) {
      const at::Tensor own = dense.narrow(0, part.row_begin, part.rows).cpu();
      at::Tensor& sum = sums[part.name];
      sum = sum.defined() ? sum + own : own;
    }
  }
}

}  // namespace

double relative_error(const at::Tensor& ours, const at::Tensor& theirs) {
  return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-30)).item<double>();
}

Result<Tensors> read_tensors(io::Env& env, const std::string& path) {
  const auto file = LATHE_TRY(env.map(path));
  const auto header = LATHE_TRY(delta::parse_header(file->bytes(), file->bytes().size()).at(path));
  Tensors tensors;
  for (const auto& info : header.tensors) {
    const bool floating = info.dtype == delta::Dtype::kF32;
    if (!floating && info.dtype != delta::Dtype::kI64)
      return unsupported(path + ": " + info.name + " is neither F32 nor I64");
    const auto* data = file->bytes().data() + header.data_offset + info.begin;
    tensors[info.name] =
        at::from_blob(const_cast<std::byte*>(data), info.shape, floating ? at::kFloat : at::kLong).clone();
  }
  return tensors;
}

ReferenceCase::ReferenceCase(const model::LoadedModel& loaded, const Tensors& reference,
                             const train::PassLimits& limits, train::GradientPath path)
    : model_(*loaded.model), store_(*loaded.store), reference_(reference), limits_(limits), path_(path) {
  const at::Tensor ids = reference.at("input_ids"), labels = reference.at("labels");
  for (int64_t row = 0; row < ids.size(0); ++row) {
    data::Example example;
    for (int64_t t = 0; t < ids.size(1); ++t) {
      example.tokens.push_back(ids[row][t].item<int32_t>());
      example.weights.push_back(labels[row][t].item<int64_t>() != -100 ? 1.0F : 0.0F);
    }
    example.weights[0] = 0;
    examples_.push_back(std::move(example));
  }
}

Comparison ReferenceCase::compare(const std::string& kind, int64_t context) const {
  std::vector<data::Example> examples = examples_;
  for (auto& example : examples) std::fill_n(example.weights.begin(), context + 1, 0.0F);
  const std::vector<std::vector<data::Segment>> live(examples.size(), {{context, std::ssize(examples[0].tokens) - 1}});
  const auto [loss, gradients] = backward(train::pack(examples, live));

  Comparison result{.loss = std::abs(loss - reference_.at(kind + ".loss").item<double>())};
  compare_logits(kind, context, result);
  const std::string prefix = kind + ".grad.";
  for (auto at = reference_.lower_bound(prefix); at != reference_.end() && at->first.starts_with(prefix); ++at) {
    const std::string name = at->first.substr(prefix.size());
    const at::Tensor& expected = at->second;
    const auto found = gradients.find(name);
    result.gradients[name] =
        found == gradients.end() ? at::zeros(expected.sizes(), at::kDouble) : found->second.view(expected.sizes());
    result.gradient_errors[name] = relative_error(result.gradients[name], expected);
  }
  return result;
}

std::pair<double, Tensors> ReferenceCase::backward(const train::Batch& batch) const {
  using weights::GradientForm;
  using weights::GradientSet;
  const size_t parameters = store_.parameters().size();
  const double size = train::kSupervised.size(train::graded_rows(batch));
  Tensors sums;
  GradientSet ends(parameters, path_ == train::GradientPath::kDense ? GradientForm::kDense : GradientForm::kFactors);
  train::BackwardPass pass(model_, batch, limits_);
  const double loss = pass.loss(train::kSupervised, size, ends);
  while (pass.layers_left() > 0) {
    if (path_ != train::GradientPath::kStreaming) {
      pass.next_layer(ends);
      continue;
    }
    GradientSet layer(parameters);
    pass.next_layer(layer);
    add_gradients(store_, layer, sums);
  }
  pass.embedding(ends);
  add_gradients(store_, ends, sums);
  return {loss, sums};
}

void ReferenceCase::compare_logits(const std::string& kind, int64_t context, Comparison& result) const {
  std::vector<at::Tensor> rows;
  for (size_t i = 0; i < examples_.size(); ++i) {
    const at::Tensor ids = reference_.at("input_ids")[static_cast<int64_t>(i)].to(model_.options().device());
    model::SequenceState state = model_.new_state(ids.size(0));
    std::vector<at::Tensor> outputs;
    // The context ends a chunk, as it does for the reference: a recurrence rounds by where its chunks begin.
    for (int64_t begin = 0; begin < ids.size(0);) {
      const int64_t end = std::min(begin + limits_.chunk_rows, begin < context ? context : ids.size(0));
      const model::SequenceRows run{.begin = 0, .count = end - begin, .position = begin, .state = &state};
      outputs.push_back(model_.forward(ids.narrow(0, begin, end - begin), {&run, 1}));
      begin = end;
    }
    rows.push_back(model_.logits(at::cat(outputs, 0).narrow(0, context, ids.size(0) - context)).to(at::kDouble).cpu());
  }
  const at::Tensor ours = at::stack(rows, 0), &theirs = reference_.at(kind + ".logits");
  result.logits = (ours - theirs).abs().max().item<double>();
  result.logits_relative = relative_error(ours, theirs);
}

std::pair<int64_t, int64_t> ReferenceCase::greedy() const {
  const at::Tensor prompt = reference_.at("greedy.prompt")[0], output = reference_.at("greedy.output")[0];
  model::SequenceState state = model_.new_state(output.size(0));
  at::Tensor ids = prompt.to(model_.options().device());
  int64_t equal = 0;
  for (int64_t t = prompt.size(0); t < output.size(0); ++t) {
    const model::SequenceRows run{.begin = 0, .count = ids.size(0), .position = state.length(), .state = &state};
    const at::Tensor x = model_.forward(ids, {&run, 1});
    ids = model_.logits(x.narrow(0, x.size(0) - 1, 1)).argmax(-1);
    equal += ids.item<int64_t>() == output[t].item<int64_t>() ? 1 : 0;
  }
  return {equal, output.size(0) - prompt.size(0)};
}

}  // namespace lathe::parity
