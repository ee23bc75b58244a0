// parity DIR [ROWS] [--device D] [--dtype bf16]: compares this build with a reference case made by transformers, and
// prints one JSON line of worst errors. ROWS is the most rows of one forward pass.
//
// DIR holds config.json, model.safetensors and reference.safetensors (names and meaning: docs/formats/golden.md). Exit
// code 0 only if logits agree within 2e-5 (absolute), gradients within 1e-4 (relative L2 per tensor), losses within
// 1e-5, and every greedy token is equal. In bf16 the measure is what transformers itself loses in bf16, from the
// folder's transformers_bf16_error.json: logits and each gradient (both relative L2) within 1.5 times that; the line
// then gives the worst multiples, and greedy tokens may differ.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "checkpoint/safetensors.h"
#include "gpu/device.h"
#include "io/env.h"
#include "model/model.h"
#include "train/backward.h"

namespace lathe {
namespace {

constexpr double kLogitTolerance = 2e-5, kGradientTolerance = 1e-4, kLossTolerance = 1e-5;
constexpr double kBf16Tolerance = 1.5;  // times transformers' own error

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
    at::Tensor dense = at::zeros(parameter.data.sizes(), parameter.data.options().dtype(at::kFloat));
    const auto& matrix = set.matrices[parameter.id];
    for (size_t i = 0; i < matrix.x.size(); ++i)
      dense += at::mm(matrix.dy[i].to(at::kFloat).t(), matrix.x[i].to(at::kFloat));
    for (size_t i = 0; i < matrix.ids.size(); ++i) dense.index_add_(0, matrix.ids[i], matrix.dx[i].to(at::kFloat));
    if (set.vectors[parameter.id].defined()) dense += set.vectors[parameter.id];
    dense = dense.cpu();
    for (const auto& part : parameter.parts) out[part.name] = dense.narrow(0, part.row_begin, part.rows);
  }
  return out;
}

double relative_error(const at::Tensor& x, const at::Tensor& expected) {
  return ((x - expected).norm() / expected.norm().clamp_min(1e-30)).item<double>();
}

struct Worst {
  double logits = 0, loss = 0, gradient = 0;
  std::string gradient_name;
};

using Json = nlohmann::json;

class Case {
 public:
  // `bf16_errors`: transformers' own, when errors are to be given as multiples of them.
  Case(const model::LoadedModel& loaded, const Tensors& reference, const Json* bf16_errors)
      : model_(*loaded.model), store_(*loaded.store), reference_(reference), bf16_errors_(bf16_errors) {
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
      double error = relative_error(gradient, expected);
      if (bf16_errors_) error /= bf16_errors_->at(kind + "_grad_rel").at(name).get<double>();
      if (!(error <= worst.gradient)) worst.gradient = error, worst.gradient_name = name;  // also takes NaN
    }
    return worst;
  }

  // How many of the reference's greedy tokens come out again, of how many.
  std::pair<int64_t, int64_t> greedy() const {
    const at::Tensor prompt = reference_.at("greedy.prompt")[0], output = reference_.at("greedy.output")[0];
    model::SequenceState state = model_.new_state(output.size(0));
    at::Tensor ids = prompt.to(device());
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
    std::vector<at::Tensor> all;
    for (size_t row = 0; row < examples_.size(); ++row) {
      const at::Tensor ids = reference_.at("input_ids")[static_cast<int64_t>(row)].to(device());
      model::SequenceState state = model_.new_state(ids.size(0));
      std::vector<at::Tensor> outputs;
      for (int64_t begin = 0; begin < ids.size(0); begin += chunk_rows) {
        const int64_t count = std::min(chunk_rows, ids.size(0) - begin);
        const model::Run run{.begin = 0, .count = count, .position = begin, .state = &state};
        outputs.push_back(model_.forward(ids.narrow(0, begin, count), {&run, 1}));
      }
      const at::Tensor logits = model_.logits(at::cat(outputs, 0).narrow(0, context, ids.size(0) - context));
      all.push_back(logits.to(at::kCPU, at::kFloat));
    }
    const at::Tensor logits = at::stack(all), &expected = reference_.at(kind + ".logits");
    if (bf16_errors_) return relative_error(logits, expected) / bf16_errors_->at(kind + "_logits_rel").get<double>();
    return (logits - expected).abs().max().item<double>();
  }

  at::Device device() const { return model_.options().device(); }

  const model::Model& model_;
  const weights::WeightStore& store_;
  const Tensors& reference_;
  const Json* bf16_errors_;
  std::vector<data::Example> examples_;
};

bool inside(const Worst& worst, bool bf16) {
  if (bf16) return worst.logits <= kBf16Tolerance && worst.gradient <= kBf16Tolerance;
  return worst.logits <= kLogitTolerance && worst.loss <= kLossTolerance && worst.gradient <= kGradientTolerance;
}

struct Options {
  std::string directory, device = "cpu", dtype = "fp32";
  int64_t chunk_rows = 1024;
};

Result<bool> run(const Options& options) {
  const std::string& directory = options.directory;
  const int64_t chunk_rows = options.chunk_rows;
  const bool bf16 = options.dtype == "bf16";
  io::Env& env = io::posix_env();
  const c10::Device device = LATHE_TRY(gpu::open(options.device));
  const weights::Placement placement{.device = device, .dtype = bf16 ? at::kBFloat16 : at::kFloat};
  const model::LoadedModel loaded = LATHE_TRY(model::load_model(env, directory, placement));
  Json bf16_errors;
  if (bf16) bf16_errors = Json::parse(LATHE_TRY(io::read_text(env, directory + "/transformers_bf16_error.json")));
  const Tensors reference = LATHE_TRY(read_tensors(env, directory + "/reference.safetensors"));
  const Case reference_case(loaded, reference, bf16 ? &bf16_errors : nullptr);
  const Worst full = reference_case.compare("full", 0, chunk_rows);
  const Worst frozen = reference_case.compare("frozen", reference.at("frozen.context").item<int64_t>(), chunk_rows);
  const auto [equal, of] = reference_case.greedy();
  std::printf(
      "{\"model\":\"%s\",\"full_logits\":%.3g,\"full_loss\":%.3g,\"full_grad\":%.3g,\"full_grad_name\":\"%s\","
      "\"frozen_logits\":%.3g,\"frozen_loss\":%.3g,\"frozen_grad\":%.3g,\"frozen_grad_name\":\"%s\",\"greedy\":%ld,"
      "\"greedy_of\":%ld}\n",
      directory.c_str(), full.logits, full.loss, full.gradient, full.gradient_name.c_str(), frozen.logits, frozen.loss,
      frozen.gradient, frozen.gradient_name.c_str(), static_cast<long>(equal), static_cast<long>(of));
  return inside(full, bf16) && inside(frozen, bf16) && (bf16 || equal == of);
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  lathe::Options options;
  CLI::App app("Compares this build with a reference case made by transformers");
  app.add_option("DIR", options.directory)->required();
  app.add_option("ROWS", options.chunk_rows, "Rows per forward pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--device", options.device, "cpu, cuda, cuda:N or auto")->capture_default_str();
  app.add_option("--dtype", options.dtype)->check(CLI::IsMember({"fp32", "bf16"}))->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  const auto result = lathe::run(options);
  if (!result.ok()) {
    std::fprintf(stderr, "parity: %s\n", result.error().message.c_str());
    return 1;
  }
  return *result ? 0 : 1;
}
