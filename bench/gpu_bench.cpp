// What a training step costs on this machine's GPU, phase by phase, compared with the machine's limits: random weights
// of real models' shapes, made on the device.
//
// usage: gpu_bench [--model NAME,...] [--case CASE,...] [--optimizer METHOD|none] [--chunk ROWS] [--repeats N]
//                  [--device D]
//   NAME: tiny, smollm2-135m, qwen3-1.7b, qwen3-8b, qwen3.5-4b, qwen3.5-27b
//   CASE: full:BxT         B sequences of T graded tokens
//         frozen:C+G       G graded tokens after C tokens of constant context
//         exact:C+G        the same with gradient through the context
// --attention and --delta print how fast these kernels alone are.
// Prints one JSON line per model and case, and a table last. `ceiling_share` counts the arithmetic that the step must
// do (once forward, twice backward, no recomputation) against the rate at which this machine multiplies matrices of the
// model's shape. On a CPU the peak is that of the process: one case a run.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "base/memory.h"
#include "gpu/device.h"
#include "model/cuda_attention.h"
#include "model/cuda_delta_rule.h"
#include "optim/optimizer.h"
#include "train/backward.h"
#include "train/batch.h"
#include "train/estimate.h"
#include "train/loss.h"
#include "train/trainer.h"

namespace lathe {
namespace {

struct Options {
  std::vector<std::string> models{"qwen3-1.7b", "qwen3-8b"};
  std::vector<std::string> cases{"full:2x4096", "frozen:16384+512"};
  std::string optimizer = "apollo_mini", device = "cuda";
  int64_t chunk_rows = 16384;
  int repeats = 5;
  bool attention = false, delta = false;
};

// As the published config.json files say, where these differ from the parser's defaults.
Result<model::ModelConfig> config_of(const std::string& name) {
  static const std::map<std::string, std::string> kConfigs{
      {"tiny",
       R"("model_type":"qwen3","hidden_size":64,"intermediate_size":192,"num_hidden_layers":2,"num_attention_heads":4,
        "num_key_value_heads":2,"head_dim":32,"vocab_size":512,"tie_word_embeddings":true)"},
      {"smollm2-135m", R"("model_type":"llama","hidden_size":576,"intermediate_size":1536,"num_hidden_layers":30,
        "num_attention_heads":9,"num_key_value_heads":3,"vocab_size":49152,"tie_word_embeddings":true)"},
      {"qwen3-1.7b", R"("model_type":"qwen3","hidden_size":2048,"intermediate_size":6144,"num_hidden_layers":28,
        "num_attention_heads":16,"num_key_value_heads":8,"head_dim":128,"vocab_size":151936,"tie_word_embeddings":true)"},
      {"qwen3-8b", R"("model_type":"qwen3","hidden_size":4096,"intermediate_size":12288,"num_hidden_layers":36,
        "num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,"vocab_size":151936,"tie_word_embeddings":false)"},
      {"qwen3.5-4b", R"("model_type":"qwen3_5_text","hidden_size":2560,"intermediate_size":9216,"num_hidden_layers":32,
        "num_attention_heads":16,"num_key_value_heads":4,"head_dim":256,"linear_num_key_heads":16,
        "linear_num_value_heads":32,"vocab_size":248320,"tie_word_embeddings":true)"},
      {"qwen3.5-27b",
       R"("model_type":"qwen3_5_text","hidden_size":5120,"intermediate_size":17408,"num_hidden_layers":64,
        "num_attention_heads":24,"num_key_value_heads":4,"head_dim":256,"linear_num_key_heads":16,
        "linear_num_value_heads":48,"vocab_size":248320,"tie_word_embeddings":false)"},
  };
  const auto found = kConfigs.find(name);
  if (found == kConfigs.end()) return invalid_argument("no model is called " + name);
  return model::ModelConfig::parse("{" + found->second +
                                   R"(,"rope_parameters":{"rope_type":"default","rope_theta":1000000.0},
        "max_position_embeddings":262144})");
}

weights::WeightStore random_weights(const model::ModelConfig& config, c10::Device device) {
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(device);
  weights::WeightStore store;
  for (const auto& spec : model::Model::parameter_specs(config)) {
    const bool wide = spec.name.ends_with("A_log");
    at::Tensor data = at::empty(spec.held_shape(), options.dtype(wide ? at::kFloat : at::kBFloat16));
    data.dim() == 2 ? data.normal_(0, 0.02) : data.normal_(1, 0.1);
    store.add(spec.name, std::move(data), spec.held_parts(), spec.vocabulary);
  }
  return store;
}

struct Case {
  std::string name;
  int64_t sequences = 1, context = 0, graded = 0;
  data::ContextMode mode = data::ContextMode::kFrozen;

  int64_t rows() const { return sequences * (context + graded); }
  // As many tokens with gradient as tokens: the update is streamed.
  bool streams() const { return context == 0 || mode == data::ContextMode::kExact; }
};

Result<Case> parse_case(const std::string& text) {
  Case c{.name = text};
  long long a = 0, b = 0;
  if (std::sscanf(text.c_str(), "full:%lldx%lld", &a, &b) == 2 && a > 0 && b > 0) {
    c.sequences = a, c.graded = b;
  } else if (std::sscanf(text.c_str(), "frozen:%lld+%lld", &a, &b) == 2 && a > 0 && b > 0) {
    c.context = a, c.graded = b;
  } else if (std::sscanf(text.c_str(), "exact:%lld+%lld", &a, &b) == 2 && a > 0 && b > 0) {
    c.context = a, c.graded = b, c.mode = data::ContextMode::kExact;
  } else {
    return invalid_argument("a case is full:BxT, frozen:C+G or exact:C+G, not " + text);
  }
  return c;
}

// One token more than rows, so that exactly `graded` rows of each sequence are live.
std::vector<data::Example> make_examples(const Case& c, int64_t vocabulary) {
  std::vector<data::Example> examples(c.sequences);
  for (data::Example& example : examples) {
    const at::Tensor ids = at::randint(vocabulary, {c.context + c.graded + 1}, at::kInt);
    example.tokens.assign(ids.data_ptr<int32_t>(), ids.data_ptr<int32_t>() + ids.numel());
    example.weights.assign(example.tokens.size(), 1.0F);
    std::fill_n(example.weights.begin(), c.context + 1, 0.0F);
  }
  return examples;
}

double host_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Marks on the device's stream, and the seconds between them: no waiting in between, so that the host stays ahead.
class Laps {
 public:
  explicit Laps(c10::Device device) : device_(device) {}

  void mark() {
    if (device_.is_cpu()) return host_.push_back(host_seconds());
    const c10::impl::VirtualGuardImpl guard(device_.type());
    events_.emplace_back(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
    events_.back().record(guard.getStream(device_));
  }
  std::vector<double> seconds() {
    std::vector<double> laps;
    gpu::synchronize(device_);
    for (size_t i = 1; i < std::max(events_.size(), host_.size()); ++i)
      laps.push_back(device_.is_cpu() ? host_[i] - host_[i - 1] : events_[i - 1].elapsedTime(events_[i]) / 1e3);
    return laps;
  }

 private:
  c10::Device device_;
  std::vector<c10::Event> events_;
  std::vector<double> host_;
};

struct Spread {
  double median = 0, low = 0, high = 0;
};

Spread spread_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values.front(), values.back()};
}

template <class Work>
Spread timed(c10::Device device, int repeats, Work&& work) {
  for (int i = 0; i < 3; ++i) work();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    Laps laps(device);
    laps.mark();
    work();
    laps.mark();
    seconds.push_back(laps.seconds()[0]);
  }
  return spread_of(seconds);
}

struct Ceilings {
  double gemm_flops = 0;  // per second
  double copy_bytes = 0;  // per second, read and written
};

// Of gate_up's product over 8,192 rows, the largest of a layer, and of copying one GiB.
Ceilings measure_ceilings(const model::ModelConfig& config, c10::Device device) {
  const bool cpu = device.is_cpu();
  const int64_t rows = cpu ? 64 : 8192, out = 2 * config.intermediate_size, in = config.hidden_size;
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(device);
  const at::Tensor x = at::randn({rows, in}, options), w = at::randn({out, in}, options);
  const at::Tensor from = at::randn({(cpu ? 1 : 512) << 20}, options), to = at::empty_like(from);
  const double product = timed(device, 10, [&] { at::linear(x, w); }).median;
  const double copy = timed(device, 10, [&] { to.copy_(from); }).median;
  return {.gemm_flops = 2.0 * static_cast<double>(rows * out * in) / product,
          .copy_bytes = 2.0 * static_cast<double>(from.nbytes()) / copy};
}

constexpr const char* kPhases[] = {"context", "live", "loss", "backward", "propose", "commit"};
constexpr size_t kPhaseCount = std::size(kPhases);

struct Measurement {
  std::string model, name, error;
  Spread step;
  double phases[kPhaseCount] = {};
  double tokens_per_second = 0, operations = 0, weights_gb = 0, peak_gb = 0, ceiling_share = 0, loss = 0;
  Ceilings ceilings;
};

class Bench {
 public:
  Bench(const model::Model& model, const weights::WeightStore& store, const Case& c, const Options& options,
        c10::Device device)
      : model_(model),
        store_(store),
        case_(c),
        options_(options),
        device_(device),
        examples_(make_examples(c, model.config().vocab_size)),
        batch_(train::pack(examples_, c.mode)) {
    if (options.optimizer != "none") {
      trainer_.emplace(model, store, gate_, optim::OptimizerConfig{.method = *optim::parse_method(options.optimizer)});
    }
  }

  Result<Measurement> run() {
    Measurement out{.name = case_.name};
    LATHE_TRY(step(nullptr, out.loss));
    LATHE_TRY(step(nullptr, out.loss));
    gpu::synchronize(device_);
    gpu::reset_peak(device_);
    std::vector<double> whole, parts[3];
    for (int i = 0; i < options_.repeats; ++i) {
      Laps laps(device_);
      LATHE_TRY(step(&laps, out.loss));
      const std::vector<double> seconds = laps.seconds();
      for (size_t lap = 0; lap < seconds.size(); ++lap) parts[lap].push_back(seconds[lap]);
      whole.push_back(std::accumulate(seconds.begin(), seconds.end(), 0.0));
    }
    out.peak_gb = static_cast<double>(device_.is_cpu() ? peak_resident_bytes() : gpu::peak_bytes(device_)) / 1e9;
    out.step = spread_of(whole);
    add_phases(out, spread_of(parts[0]).median);
    if (!parts[1].empty()) out.phases[4] = spread_of(parts[1]).median, out.phases[5] = spread_of(parts[2]).median;
    out.tokens_per_second = static_cast<double>(case_.rows()) / out.step.median;
    out.operations = train::operations(model_.config(), store_, train::pass_size(examples_, case_.mode));
    return out;
  }

 private:
  // Laps: forward, loss and backward; proposal; commit. A streamed update counts as part of the backward pass.
  Status step(Laps* laps, double& loss) {
    const auto mark = [&] {
      if (laps) laps->mark();
    };
    mark();
    if (trainer_ && case_.streams()) {
      const train::StepOptions streamed{
          .context = case_.mode, .chunk_rows = options_.chunk_rows, .gradients = train::GradientPath::kStreaming};
      loss = LATHE_TRY(trainer_->step(examples_, streamed)).loss;
      mark();
      return {};
    }
    weights::GradientSet gradients(store_.parameters().size());
    loss = train::backward(model_, batch_, {.chunk_rows = options_.chunk_rows}, gradients);
    mark();
    if (!trainer_) return {};
    auto proposal = LATHE_TRY(trainer_->optimizer().propose(std::move(gradients), 1e-5));
    mark();
    trainer_->optimizer().commit(std::move(proposal));
    mark();
    return {};
  }

  // train::backward() is one call: its parts are timed alone, and what is left of the whole is the backward pass
  // proper.
  void add_phases(Measurement& out, double whole) {
    const int repeats = std::max(3, options_.repeats / 2);
    std::vector<model::SequenceState> states;
    if (!case_.streams()) {
      const at::Tensor ids = at::tensor(batch_.tokens[0], at::kLong).narrow(0, 0, case_.context).to(device_);
      out.phases[0] = timed(device_, repeats, [&] {
                        model::SequenceState state = model_.new_state(case_.context);
                        for (int64_t begin = 0; begin < case_.context; begin += options_.chunk_rows) {
                          const int64_t count = std::min(options_.chunk_rows, case_.context - begin);
                          const model::SequenceRows run{.begin = 0, .count = count, .position = begin, .state = &state};
                          model_.forward(ids.narrow(0, begin, count), {&run, 1});
                        }
                      }).median;
    }
    const double forward =
        timed(device_, repeats, [&] { train::forward_live(model_, batch_, options_.chunk_rows, true); }).median;
    const train::GradedRows graded = train::graded_rows(batch_);
    const at::Tensor x = at::randn({batch_.live_rows, model_.config().hidden_size}, model_.options());
    out.phases[2] =
        timed(device_, repeats, [&] {
          weights::GradientSet sink(store_.parameters().size());
          train::loss_gradient(model_, graded, x, train::kSupervised, train::kSupervised.size(graded), sink);
        }).median;
    out.phases[1] = forward - out.phases[0];
    out.phases[3] = whole - forward - out.phases[2];
  }

  const model::Model& model_;
  const weights::WeightStore& store_;
  Case case_;
  const Options& options_;
  c10::Device device_;
  std::vector<data::Example> examples_;
  train::Batch batch_;
  weights::Gate gate_;
  std::optional<train::Trainer> trainer_;
};

void print_json(const Measurement& m) {
  std::printf("{\"model\":\"%s\",\"case\":\"%s\"", m.model.c_str(), m.name.c_str());
  if (!m.error.empty()) {
    std::printf(",\"error\":%s}\n", nlohmann::json(m.error).dump().c_str());
    return;
  }
  std::printf(
      ",\"seconds\":%.4f,\"low\":%.4f,\"high\":%.4f,\"tokens_s\":%.0f,\"weights_gb\":%.2f,\"peak_gb\":%.2f,\"gemm_"
      "tflops\":%.0f,"
      "\"copy_gb_s\":%.0f,\"ceiling_share\":%.3f,\"loss\":%.4f",
      m.step.median, m.step.low, m.step.high, m.tokens_per_second, m.weights_gb, m.peak_gb,
      m.ceilings.gemm_flops / 1e12, m.ceilings.copy_bytes / 1e9, m.ceiling_share, m.loss);
  for (size_t i = 0; i < kPhaseCount; ++i) std::printf(",\"%s_s\":%.4f", kPhases[i], m.phases[i]);
  std::printf("}\n");
  std::fflush(stdout);
}

void print_table(const std::vector<Measurement>& all) {
  std::printf("\n%-11s %-17s %7s %15s %8s %8s %7s %6s", "model", "case", "s", "range", "tok/s", "weights", "peak GB",
              "share");
  for (const char* phase : kPhases) std::printf(" %8s", phase);
  std::printf("\n");
  for (const Measurement& m : all) {
    std::printf("%-11s %-17s ", m.model.c_str(), m.name.c_str());
    if (!m.error.empty()) {
      std::printf("failed: %s\n", m.error.c_str());
      continue;
    }
    std::printf("%7.4f %7.4f-%7.4f %8.0f %8.2f %7.2f %5.0f%%", m.step.median, m.step.low, m.step.high,
                m.tokens_per_second, m.weights_gb, m.peak_gb, 100 * m.ceiling_share);
    for (const double seconds : m.phases) std::printf(" %8.4f", seconds);
    std::printf("\n");
  }
}

#ifdef LATHE_CUDA
// Milliseconds and TFLOP/s of each attention kernel: whole sequences, and rows with a past.
void attention_table(c10::Device device, int repeats) {
  struct Shape {
    const char* name;
    int64_t queries, keys, heads, kv_heads, size;
  };
  const Shape shapes[] = {{"qwen3-8b", 4096, 4096, 32, 8, 128},   {"qwen3-8b", 16384, 16384, 32, 8, 128},
                          {"qwen3-8b", 4096, 16384, 32, 8, 128},  {"qwen3-8b", 512, 16896, 32, 8, 128},
                          {"qwen3-8b", 1, 16896, 32, 8, 128},     {"qwen3.5-27b", 16384, 16384, 24, 4, 256},
                          {"qwen3.5-27b", 512, 16896, 24, 4, 256}};
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(device);
  std::printf("%-12s %7s %7s  %-6s %9s %8s %9s %8s\n", "attention", "queries", "keys", "kernel", "fwd ms", "TFLOP/s",
              "f+b ms", "TFLOP/s");
  for (const Shape& s : shapes) {
    const at::Tensor q = at::randn({s.queries, s.heads, s.size}, options).requires_grad_();
    const at::Tensor k = at::randn({s.kv_heads, s.keys, s.size}, options).requires_grad_();
    const at::Tensor v = at::randn({s.kv_heads, s.keys, s.size}, options).requires_grad_();
    const at::Tensor dy = at::randn({s.queries, s.heads * s.size}, options);
    const double pairs =
        static_cast<double>(s.queries) * (static_cast<double>(s.keys) - static_cast<double>(s.queries - 1) / 2);
    const double flops = 4 * pairs * static_cast<double>(s.heads * s.size);
    for (const auto kernel : {model::cuda::AttentionKernel::kFlash, model::cuda::AttentionKernel::kCudnn}) {
      std::printf("%-12s %7ld %7ld  %-6s", s.name, static_cast<long>(s.queries), static_cast<long>(s.keys),
                  kernel == model::cuda::AttentionKernel::kFlash ? "flash" : "cuDNN");
      try {
        const double forward = timed(device, repeats, [&] {
                                 const at::NoGradGuard no_grad;
                                 model::cuda::attention(q, k, v, kernel);
                               }).median;
        std::printf(" %9.3f %8.0f", forward * 1e3, flops / forward / 1e12);
        const double both = timed(device, repeats, [&] {
                              const at::AutoGradMode with_grad(true);
                              torch::autograd::grad({model::cuda::attention(q, k, v, kernel)}, {q, k, v}, {dy});
                            }).median;
        std::printf(" %9.3f %8.0f\n", both * 1e3, 3.5 * flops / both / 1e12);
      } catch (const c10::Error& e) {
        std::printf("  %.90s\n", e.what_without_backtrace());
      }
    }
  }
}

// Milliseconds of the gated delta rule alone: one sequence from zeros to its last state; and forward with what the
// gradient needs of it, and the gradient of everything.
void delta_table(c10::Device device, int repeats) {
  constexpr int64_t kSize = 128;
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(device);
  std::printf("%-12s %7s  %9s %17s %9s %17s\n", "delta heads", "tokens", "fwd ms", "range", "f+b ms", "range");
  for (const auto& [key_heads, value_heads] : {std::pair<int64_t, int64_t>{16, 48}, {16, 32}, {16, 16}}) {
    for (const int64_t tokens : {512, 4096, 8192, 16384}) {
      const auto heads = [&](int64_t count) { return at::randn({tokens, count, kSize}, options); };
      const auto unit = [](const at::Tensor& x) { return x / x.norm(2, -1, /*keepdim=*/true); };
      const auto wide = options.dtype(at::kFloat);
      const model::DeltaInputs in{.q = unit(heads(key_heads)) / std::sqrt(static_cast<double>(kSize)),
                                  .k = unit(heads(key_heads)),
                                  .v = heads(value_heads),
                                  .g = at::rand({tokens, value_heads}, wide) * -0.1,
                                  .beta = at::rand({tokens, value_heads}, wide)};
      const at::Tensor d_o = heads(value_heads);
      const Spread forward = timed(device, repeats, [&] { model::cuda::delta_rule(in, at::Tensor()); });
      const Spread both =
          timed(device, repeats, [&] { model::cuda::delta_rule_gradient(in, at::Tensor(), d_o, at::Tensor()); });
      std::printf("%5ld/%-6ld %7ld  %9.3f %8.3f-%8.3f %9.3f %8.3f-%8.3f\n", static_cast<long>(key_heads),
                  static_cast<long>(value_heads), static_cast<long>(tokens), forward.median * 1e3, forward.low * 1e3,
                  forward.high * 1e3, both.median * 1e3, both.low * 1e3, both.high * 1e3);
    }
  }
}

#else
void attention_table(c10::Device, int) {}
void delta_table(c10::Device, int) {}
#endif

Status run(const Options& options) {
  const c10::Device device = LATHE_TRY(gpu::open(options.device));
  if (options.attention) {
    if (!device.is_cuda()) return invalid_argument("the attention kernels are for GPUs");
    attention_table(device, options.repeats);
    return {};
  }
  if (options.delta) {
    if (!device.is_cuda()) return invalid_argument("the delta rule's kernels are for GPUs");
    delta_table(device, options.repeats);
    return {};
  }
  std::vector<Case> cases;
  for (const std::string& text : options.cases) cases.push_back(LATHE_TRY(parse_case(text)));
  std::vector<Measurement> all;
  for (const std::string& name : options.models) {
    const model::ModelConfig config = LATHE_TRY(config_of(name));
    const Ceilings ceilings = measure_ceilings(config, device);
    const weights::WeightStore store = random_weights(config, device);
    const model::Model model(config, store);
    for (const Case& c : cases) {
      Measurement m{.name = c.name};
      try {
        auto measured = Bench(model, store, c, options, device).run();
        if (measured.ok()) m = *measured;
        if (!measured.ok()) m.error = measured.error().message;
      } catch (const c10::Error& e) {
        m.error = e.what_without_backtrace();
      }
      m.model = name;
      m.weights_gb = static_cast<double>(store.byte_count()) / 1e9;
      m.ceilings = ceilings;
      if (m.error.empty()) m.ceiling_share = m.operations / m.step.median / ceilings.gemm_flops;
      print_json(m);
      all.push_back(m);
    }
  }
  print_table(all);
  for (const Measurement& m : all) {
    if (!m.error.empty()) return internal("a case failed");
  }
  return {};
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  lathe::Options options;
  CLI::App app("What a training step costs on a GPU");
  app.add_option("--model", options.models)->delimiter(',')->capture_default_str();
  app.add_option("--case", options.cases)->delimiter(',')->capture_default_str();
  app.add_option("--optimizer", options.optimizer)
      ->check(CLI::IsMember({"apollo_mini", "apollo", "adamw", "sgd", "none"}))
      ->capture_default_str();
  app.add_option("--chunk", options.chunk_rows, "Rows per forward pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--attention", options.attention, "Time the attention kernels instead");
  app.add_flag("--delta", options.delta, "Time the gated delta rule's kernels instead");
  app.add_option("--repeats", options.repeats)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--device", options.device)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const lathe::Status status = lathe::run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "gpu_bench: %s\n", status.error().message.c_str());
  return 1;
}
