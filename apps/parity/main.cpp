// parity DIR: compares this build with a reference case made by transformers, and prints one JSON line of worst errors.
//
// DIR holds config.json, model.safetensors and reference.safetensors (names and meaning: docs/formats/golden.md). Exit
// code 0 only if logits agree within 2e-5 (absolute), gradients within 1e-4 (relative L2 per tensor), losses within
// 1e-5, and every greedy token is equal.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <cstdio>
#include <map>

#include "checkpoint/safetensors.h"
#include "io/env.h"
#include "model/model.h"
#include "train/backward.h"

namespace lathe {
namespace {

constexpr double kLogitTolerance = 2e-5, kGradientTolerance = 1e-4, kLossTolerance = 1e-5;

using Tensors = std::map<std::string, at::Tensor>;

Result<Tensors> read_tensors(io::Env& env, const std::string& path) {
  const auto file = LATHE_TRY(env.map(path));
  const auto header = LATHE_TRY(checkpoint::parse_header(file->bytes(), file->bytes().size()).at(path));
  Tensors tensors;
  for (const auto& info : header.tensors) {
    const bool floating = info.dtype == checkpoint::Dtype::kF32;
    if (!floating && info.dtype != checkpoint::Dtype::kI64)
      return unsupported(path + ": " + info.name + " is neither F32 nor I64");
    const auto* data = file->bytes().data() + header.data_offset + info.begin;
    tensors[info.name] =
        at::from_blob(const_cast<std::byte*>(data), info.shape, floating ? at::kFloat : at::kLong).clone();
  }
  return tensors;
}

// Dense gradients per checkpoint tensor, put together from what the sink collected.
Tensors dense_gradients(const weights::WeightStore& store, const weights::GradientSet& set) {
  Tensors out;
  for (const auto& parameter : store.parameters()) {
    at::Tensor dense = at::zeros(parameter.data.sizes(), at::kFloat);
    const auto& matrix = set.matrices[parameter.id];
    for (size_t i = 0; i < matrix.x.size(); ++i)
      dense += at::mm(matrix.dy[i].to(at::kFloat).t(), matrix.x[i].to(at::kFloat));
    for (size_t i = 0; i < matrix.ids.size(); ++i) dense.index_add_(0, matrix.ids[i], matrix.dx[i].to(at::kFloat));
    if (set.vectors[parameter.id].defined()) dense += set.vectors[parameter.id];
    for (const auto& part : parameter.parts) out[part.name] = dense.narrow(0, part.row_begin, part.rows);
  }
  return out;
}

struct Worst {
  double logits = 0, loss = 0, gradient = 0;
  std::string gradient_name;
};

class Case {
 public:
  Case(const model::LoadedModel& loaded, const Tensors& reference)
      : model_(*loaded.model), store_(*loaded.store), reference_(reference) {
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

  // Rows context .. of every sequence with gradient, those before as constants; `kind` is "full" or "frozen".
  Worst compare(const std::string& kind, int64_t context, int64_t chunk_rows) const {
    std::vector<data::Example> examples = examples_;
    for (auto& example : examples) std::fill_n(example.weights.begin(), context + 1, 0.0F);
    const auto length = static_cast<int64_t>(examples[0].tokens.size());
    const std::vector<std::vector<data::Segment>> live(examples.size(), {{context, length - 1}});
    weights::GradientSet set(store_.parameters().size());
    const double loss = train::backward(model_, train::pack(examples, live), chunk_rows, set);

    Worst worst;
    worst.loss = std::abs(loss - reference_.at(kind + ".loss").item<double>());
    worst.logits = compare_logits(kind, context, chunk_rows);
    for (const auto& [name, gradient] : dense_gradients(store_, set)) {
      const at::Tensor& expected = reference_.at(kind + ".grad." + name);
      const double error = ((gradient - expected).norm() / expected.norm().clamp_min(1e-30)).item<double>();
      if (!(error <= worst.gradient)) worst.gradient = error, worst.gradient_name = name;  // also takes NaN
    }
    return worst;
  }

  // How many of the reference's greedy tokens come out again, of how many.
  std::pair<int64_t, int64_t> greedy() const {
    const at::Tensor prompt = reference_.at("greedy.prompt")[0], output = reference_.at("greedy.output")[0];
    model::SequenceState state = model_.new_state(output.size(0));
    at::Tensor ids = prompt;
    int64_t equal = 0;
    for (int64_t t = prompt.size(0); t < output.size(0); ++t) {
      const model::Run run{.begin = 0, .count = ids.size(0), .position = state.length(), .state = &state};
      const at::Tensor x = model_.forward(ids, {&run, 1});
      ids = model_.logits(x.narrow(0, x.size(0) - 1, 1)).argmax(-1);
      equal += ids.item<int64_t>() == output[t].item<int64_t>() ? 1 : 0;
    }
    return {equal, output.size(0) - prompt.size(0)};
  }

 private:
  double compare_logits(const std::string& kind, int64_t context, int64_t chunk_rows) const {
    double worst = 0;
    for (size_t row = 0; row < examples_.size(); ++row) {
      const at::Tensor ids = reference_.at("input_ids")[static_cast<int64_t>(row)];
      model::SequenceState state = model_.new_state(ids.size(0));
      std::vector<at::Tensor> outputs;
      for (int64_t begin = 0; begin < ids.size(0); begin += chunk_rows) {
        const int64_t count = std::min(chunk_rows, ids.size(0) - begin);
        const model::Run run{.begin = 0, .count = count, .position = begin, .state = &state};
        outputs.push_back(model_.forward(ids.narrow(0, begin, count), {&run, 1}));
      }
      const at::Tensor logits = model_.logits(at::cat(outputs, 0).narrow(0, context, ids.size(0) - context));
      const at::Tensor& expected = reference_.at(kind + ".logits")[static_cast<int64_t>(row)];
      worst = std::max(worst, (logits.to(at::kFloat) - expected).abs().max().item<double>());
    }
    return worst;
  }

  const model::Model& model_;
  const weights::WeightStore& store_;
  const Tensors& reference_;
  std::vector<data::Example> examples_;
};

bool inside(const Worst& worst) {
  return worst.logits <= kLogitTolerance && worst.loss <= kLossTolerance && worst.gradient <= kGradientTolerance;
}

Result<bool> run(const std::string& directory, int64_t chunk_rows) {
  io::Env& env = io::posix_env();
  const model::LoadedModel loaded = LATHE_TRY(model::load_model(env, directory));
  const Tensors reference = LATHE_TRY(read_tensors(env, directory + "/reference.safetensors"));
  const Case reference_case(loaded, reference);
  const Worst full = reference_case.compare("full", 0, chunk_rows);
  const Worst frozen = reference_case.compare("frozen", reference.at("frozen.context").item<int64_t>(), chunk_rows);
  const auto [equal, of] = reference_case.greedy();
  std::printf(
      "{\"model\":\"%s\",\"full_logits\":%.3g,\"full_loss\":%.3g,\"full_grad\":%.3g,\"full_grad_name\":\"%s\","
      "\"frozen_logits\":%.3g,\"frozen_loss\":%.3g,\"frozen_grad\":%.3g,\"frozen_grad_name\":\"%s\",\"greedy\":%ld,"
      "\"greedy_of\":%ld}\n",
      directory.c_str(), full.logits, full.loss, full.gradient, full.gradient_name.c_str(), frozen.logits, frozen.loss,
      frozen.gradient, frozen.gradient_name.c_str(), static_cast<long>(equal), static_cast<long>(of));
  return inside(full) && inside(frozen) && equal == of;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: parity DIR [ROWS_PER_CHUNK]\n");
    return 2;
  }
  const auto result = lathe::run(argv[1], argc == 3 ? std::atoll(argv[2]) : 1024);
  if (!result.ok()) {
    std::fprintf(stderr, "parity: %s\n", result.error().message.c_str());
    return 1;
  }
  return *result ? 0 : 1;
}
