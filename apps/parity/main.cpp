// parity DIR: compares this build with a reference case and prints one JSON line of worst errors.
//
// DIR holds config.json, model.safetensors and reference.safetensors (names and meaning: docs/formats/golden.md). In
// fp32 the exit code is 0 only if logits agree within 2e-5 (absolute), gradients within 1e-4 (relative L2 per tensor),
// losses within 1e-5, and every greedy token is equal. In bf16 errors are relative L2; each must stay within 1.5 times
// what transformers' own bf16 run shows on the same case (DIR/transformers_bf16_error.json).
//
// Where DIR holds apollo.json and no config.json, the optimizer's trajectories are replayed instead, in fp32 on the
// CPU: parameters must agree within 1e-5 (relative L2), and their way within 5e-5 of its length.
//
// References are computed in fp32, and a few gradients of the delta rule's decay cancel there beyond 1e-4. Where such a
// one of ours is further than 1e-4 from the reference, a run of the same case in fp64 decides: if it is the reference
// that is further than 1e-4 from fp64, ours is held to fp64 instead, and the line lists it
// (docs/decisions/0008-fp64-arbiter.md).
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "apollo_case.h"
#include "gpu/device.h"
#include "reference_case.h"

namespace lathe::parity {
namespace {

using Json = nlohmann::json;

constexpr double kLogitTolerance = 2e-5, kGradientTolerance = 1e-4, kLossTolerance = 1e-5;
constexpr double kCancellation = 1e-1;
constexpr double kApolloTolerance = 1e-5, kApolloWayTolerance = 5e-5;
constexpr double kBf16Ratio = 1.5, kBf16LossTolerance = 1e-2;

struct Options {
  std::string directory;
  int64_t rows_per_chunk = 1024;
  bool recompute = false;
  std::string device = "cpu", dtype = "fp32", gradients = "factored";
};

const std::map<std::string, train::GradientPath> kPaths = {{"factored", train::GradientPath::kFactored},
                                                           {"streaming", train::GradientPath::kStreaming},
                                                           {"dense", train::GradientPath::kDense}};

struct Results {
  Comparison full, frozen;
  int64_t greedy = 0, greedy_of = 0;
};

Result<Results> run_case(const Options& options, at::ScalarType dtype, const Tensors& reference) {
  const weights::Placement placement{.device = LATHE_TRY(gpu::open(options.device)), .dtype = dtype};
  const model::LoadedModel loaded = LATHE_TRY(model::load_model(io::posix_env(), options.directory, placement));
  constexpr int64_t kAll = int64_t{1} << 40;
  const train::PassLimits limits{.chunk_rows = options.rows_per_chunk, .kept_bytes = options.recompute ? 0 : kAll};
  const ReferenceCase reference_case(loaded, reference, limits, kPaths.at(options.gradients));
  Results results{.full = reference_case.full(), .frozen = reference_case.frozen()};
  std::tie(results.greedy, results.greedy_of) = reference_case.greedy();
  return results;
}

using Named = std::pair<std::string, double>;

Named worst(const std::map<std::string, double>& errors) {
  Named worst;
  for (const auto& [name, error] : errors) {
    if (!(error <= worst.second)) worst = {name, error};  // also takes NaN
  }
  return worst;
}

// Gradients of the delta rule's decay, in which fp32 cancels. No other may be referred to fp64, and none that is
// further off than rounding could make it: a mistake of ours would be in our fp64 too.
bool may_cancel(const std::string& name, double error) {
  constexpr std::array<std::string_view, 3> kDecay = {"linear_attn.A_log", "linear_attn.dt_bias",
                                                      "linear_attn.in_proj_a.weight"};
  return error <= kCancellation &&
         std::any_of(kDecay.begin(), kDecay.end(), [&](std::string_view decay) { return name.ends_with(decay); });
}

// The errors by which ours is judged; those where fp64 speaks against the reference are listed in `line`.
std::map<std::string, double> arbitrated(const std::string& kind, const Comparison& ours, const Comparison& exact,
                                         Json& line) {
  std::map<std::string, double> errors = ours.gradient_errors;
  for (auto& [name, error] : errors) {
    if (error <= kGradientTolerance) continue;
    const double of_reference = exact.gradient_errors.at(name);
    if (!(of_reference > kGradientTolerance) || !may_cancel(name, of_reference)) continue;
    error = relative_error(ours.gradients.at(name), exact.gradients.at(name));
    line[kind + "_reference_error"][name] = {{"reference", of_reference}, {"ours", error}};
  }
  return errors;
}

Result<bool> report_fp32(const Options& options, const Results& ours, const Tensors& reference, Json& line) {
  const bool doubtful =
      std::max(worst(ours.full.gradient_errors).second, worst(ours.frozen.gradient_errors).second) > kGradientTolerance;
  Results exact = ours;
  if (doubtful) {
    Options on_cpu = options;
    on_cpu.device = "cpu";
    exact = LATHE_TRY(run_case(on_cpu, at::kDouble, reference));
  }
  bool inside = ours.greedy == ours.greedy_of;
  const auto add = [&](const std::string& kind, const Comparison& comparison, const Comparison& in_fp64) {
    const auto [name, error] = worst(arbitrated(kind, comparison, in_fp64, line));
    line[kind + "_logits"] = comparison.logits;
    line[kind + "_loss"] = comparison.loss;
    line[kind + "_grad"] = error;
    line[kind + "_grad_name"] = name;
    inside = inside && comparison.logits <= kLogitTolerance && comparison.loss <= kLossTolerance &&
             error <= kGradientTolerance;
  };
  add("full", ours.full, exact.full);
  add("frozen", ours.frozen, exact.frozen);
  return inside;
}

// The largest of our errors over transformers' own, and where.
Named worst_ratio(const Comparison& ours, const Json& theirs, const std::string& kind) {
  std::map<std::string, double> ratios{
      {"logits", ours.logits_relative / theirs.at(kind + "_logits_rel").get<double>()}};
  for (const auto& [name, error] : ours.gradient_errors)
    ratios[name] = error / theirs.at(kind + "_grad_rel").at(name).get<double>();
  return worst(ratios);
}

Result<bool> report_bf16(const Options& options, const Results& ours, Json& line) {
  const std::string path = options.directory + "/transformers_bf16_error.json";
  const Json theirs = Json::parse(LATHE_TRY(io::read_text(io::posix_env(), path)));
  bool inside = true;
  const auto add = [&](const std::string& kind, const Comparison& comparison) {
    const auto [name, error] = worst(comparison.gradient_errors);
    const auto [where, ratio] = worst_ratio(comparison, theirs, kind);
    line[kind + "_logits"] = comparison.logits_relative;
    line[kind + "_loss"] = comparison.loss;
    line[kind + "_grad"] = error;
    line[kind + "_grad_name"] = name;
    line[kind + "_over_transformers"] = ratio;
    line[kind + "_over_transformers_at"] = where;
    inside = inside && ratio <= kBf16Ratio && comparison.loss <= kBf16LossTolerance;
  };
  add("full", ours.full);
  add("frozen", ours.frozen);
  return inside;
}

// A folder of optimizer trajectories instead of a model.
Result<bool> run_apollo(const Options& options) {
  const ApolloErrors errors = LATHE_TRY(replay_apollo(io::posix_env(), options.directory));
  const Json line = {{"model", options.directory},
                     {"apollo", errors.weights},
                     {"apollo_way", errors.way},
                     {"apollo_way_name", errors.way_name}};
  std::printf("%s\n", line.dump().c_str());
  return errors.weights <= kApolloTolerance && errors.way <= kApolloWayTolerance;
}

Result<bool> run(const Options& options) {
  const auto holds = [&](const char* name) { return std::filesystem::exists(options.directory + name); };
  if (holds("/apollo.json") && !holds("/config.json")) return run_apollo(options);
  const Tensors reference = LATHE_TRY(read_tensors(io::posix_env(), options.directory + "/reference.safetensors"));
  const bool bf16 = options.dtype == "bf16";
  const Results ours = LATHE_TRY(run_case(options, bf16 ? at::kBFloat16 : at::kFloat, reference));
  Json line = {{"model", options.directory},
               {"device", options.device},
               {"dtype", options.dtype},
               {"greedy", ours.greedy},
               {"greedy_of", ours.greedy_of}};
  const bool inside =
      bf16 ? LATHE_TRY(report_bf16(options, ours, line)) : LATHE_TRY(report_fp32(options, ours, reference, line));
  std::printf("%s\n", line.dump().c_str());
  return inside;
}

}  // namespace
}  // namespace lathe::parity

int main(int argc, char** argv) {
  CLI::App app("Compares this build with a reference case made by transformers.", "parity");
  lathe::parity::Options options;
  app.add_option("DIR", options.directory, "Folder of the case")->required();
  app.add_option("--rows-per-chunk", options.rows_per_chunk, "Rows of a forward pass")->check(CLI::PositiveNumber);
  app.add_flag("--recompute", options.recompute, "Run each layer again in the backward pass, keeping only its input");
  app.add_option("--device", options.device, "cpu, cuda, cuda:N or auto");
  app.add_option("--dtype", options.dtype, "fp32 or bf16")->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--gradients", options.gradients, "How they are collected: factored, streaming or dense")
      ->check(CLI::IsMember({"factored", "streaming", "dense"}));
  CLI11_PARSE(app, argc, argv);
  try {
    const auto inside = lathe::parity::run(options);
    if (inside.ok()) return *inside ? 0 : 1;
    std::fprintf(stderr, "parity: %s\n", inside.error().message.c_str());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "parity: %s\n", e.what());
  }
  return 1;
}
