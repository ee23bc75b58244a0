// What a training step costs on this machine's GPU, phase by phase, beside the machine's own limits: random weights of
// real models' shapes, made on the device.
//
// usage: gpu_bench [--model NAME,...] [--case CASE,...] [--optimizer METHOD|none] [--chunk ROWS] [--repeats N]
// [--device D]
//   NAME: tiny, qwen3-1.7b, qwen3-8b
//   CASE: full:BxT         B sequences of T graded tokens
//         frozen:C+G       G graded tokens behind C tokens of constant context
// Prints one JSON line per model and case, and a table last. `ceiling_share` counts the arithmetic that the step must
// do (once forward, twice backward, no recomputation) against the rate at which this machine multiplies matrices of the
// model's shape.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "gpu/device.h"
#include "optim/optimizer.h"
#include "train/backward.h"
#include "train/batch.h"
#include "train/loss.h"

namespace lathe {
namespace {

struct Options {
  std::vector<std::string> models{"qwen3-1.7b", "qwen3-8b"};
  std::vector<std::string> cases{"full:2x4096", "frozen:16384+512"};
  std::string optimizer = "apollo_mini", device = "cuda";
  int64_t chunk_rows = 4096;
  int repeats = 5;
};

// As the published config.json files say.
Result<model::ModelConfig> config_of(const std::string& name) {
  struct Shape {
    int64_t hidden, intermediate, layers, heads, kv_heads, vocabulary;
    bool tied;
  };
  static const std::map<std::string, Shape> kShapes{
      {"tiny", {64, 192, 2, 4, 2, 512, true}},
      {"qwen3-1.7b", {2048, 6144, 28, 16, 8, 151936, true}},
      {"qwen3-8b", {4096, 12288, 36, 32, 8, 151936, false}},
  };
  const auto found = kShapes.find(name);
  if (found == kShapes.end()) return invalid_argument("no model is called " + name);
  const Shape& s = found->second;
  const auto number = [](const char* field, int64_t value) {
    return "\"" + std::string(field) + "\":" + std::to_string(value) + ",";
  };
  return model::ModelConfig::parse(
      "{\"model_type\":\"qwen3\"," + number("hidden_size", s.hidden) + number("intermediate_size", s.intermediate) +
      number("num_hidden_layers", s.layers) + number("num_attention_heads", s.heads) +
      number("num_key_value_heads", s.kv_heads) + number("head_dim", 128) + number("vocab_size", s.vocabulary) +
      number("max_position_embeddings", 40960) +
      "\"rope_theta\":1000000.0,\"tie_word_embeddings\":" + (s.tied ? "true" : "false") + "}");
}

weights::WeightStore random_weights(const model::ModelConfig& config, c10::Device device) {
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(device);
  weights::WeightStore store;
  for (const auto& spec : model::Model::parameter_specs(config)) {
    std::vector<int64_t> shape = spec.parts.front().shape;
    std::vector<std::pair<std::string, int64_t>> parts;
    shape[0] = 0;
    for (const auto& part : spec.parts) {
      parts.emplace_back(part.name, part.shape[0]);
      shape[0] += part.shape[0];
    }
    at::Tensor data = at::empty(shape, options);
    shape.size() > 1 ? data.normal_(0, 0.02) : data.fill_(1);
    store.add(spec.name, std::move(data), parts, spec.vocabulary);
  }
  return store;
}

struct Case {
  std::string name;
  int64_t sequences = 1, context = 0, graded = 0;

  int64_t rows() const { return sequences * (context + graded); }
};

Result<Case> parse_case(const std::string& text) {
  Case c{.name = text};
  long long a = 0, b = 0;
  if (std::sscanf(text.c_str(), "full:%lldx%lld", &a, &b) == 2 && a > 0 && b > 0) {
    c.sequences = a, c.graded = b;
  } else if (std::sscanf(text.c_str(), "frozen:%lld+%lld", &a, &b) == 2 && a > 0 && b > 0) {
    c.context = a, c.graded = b;
  } else {
    return invalid_argument("a case is full:BxT or frozen:C+G, not " + text);
  }
  return c;
}

// One token more than rows, so that exactly `graded` rows of each sequence are live.
train::Batch make_batch(const Case& c, int64_t vocabulary) {
  std::vector<data::Example> examples(c.sequences);
  for (data::Example& example : examples) {
    const at::Tensor ids = at::randint(vocabulary, {c.context + c.graded + 1}, at::kInt);
    example.tokens.assign(ids.data_ptr<int32_t>(), ids.data_ptr<int32_t>() + ids.numel());
    example.weights.assign(example.tokens.size(), 1.0F);
    std::fill_n(example.weights.begin(), c.context + 1, 0.0F);
  }
  return train::pack(examples, data::ContextMode::kFrozen);
}

// Operations a step cannot avoid: two per weight and row forward, four backward; attention likewise.
struct Work {
  double matrix = 0, attention = 0;
  double total() const { return matrix + attention; }
};

Work work_of(const model::ModelConfig& config, const weights::WeightStore& store, const Case& c) {
  double layers = 0;
  for (const auto& parameter : store.parameters()) {
    if (parameter.data.dim() == 2 && !parameter.vocabulary) layers += static_cast<double>(parameter.data.numel());
  }
  const auto head = static_cast<double>(config.vocab_size * config.hidden_size);
  const auto sequences = static_cast<double>(c.sequences), context = static_cast<double>(c.context),
             graded = static_cast<double>(c.graded);
  const double pairs = context * context / 2, live_pairs = graded * context + graded * graded / 2;
  const auto width = static_cast<double>(config.heads * config.head_dim * config.layers);
  return {.matrix = sequences * (2 * layers * context + 6 * (layers + head) * graded),
          .attention = sequences * 4 * width * (pairs + 3.5 * live_pairs)};
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
  double tokens_per_second = 0, weights_gb = 0, peak_gb = 0, ceiling_share = 0, loss = 0;
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
        batch_(make_batch(c, model.config().vocab_size)) {
    if (options.optimizer != "none")
      optimizer_.emplace(store, optim::OptimizerConfig{.method = *optim::parse_method(options.optimizer)});
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
    out.peak_gb = static_cast<double>(gpu::peak_bytes(device_)) / 1e9;
    out.step = spread_of(whole);
    add_phases(out, spread_of(parts[0]).median);
    if (optimizer_) out.phases[4] = spread_of(parts[1]).median, out.phases[5] = spread_of(parts[2]).median;
    out.tokens_per_second = static_cast<double>(case_.rows()) / out.step.median;
    return out;
  }

 private:
  // Laps: forward, loss and backward; proposal; commit.
  Status step(Laps* laps, double& loss) {
    const auto mark = [&] {
      if (laps) laps->mark();
    };
    mark();
    weights::GradientSet gradients(store_.parameters().size());
    loss = train::backward(model_, batch_, options_.chunk_rows, gradients);
    mark();
    if (!optimizer_) return {};
    auto proposal = LATHE_TRY(optimizer_->propose(std::move(gradients), 1e-5));
    mark();
    optimizer_->commit(std::move(proposal));
    mark();
    return {};
  }

  // train::backward() is one call: its parts are timed alone, and what is left of the whole is the backward pass
  // proper.
  void add_phases(Measurement& out, double whole) {
    const int repeats = std::max(3, options_.repeats / 2);
    std::vector<model::SequenceState> states;
    if (case_.context > 0) {
      const at::Tensor ids = at::tensor(batch_.tokens[0], at::kLong).narrow(0, 0, case_.context).to(device_);
      out.phases[0] = timed(device_, repeats, [&] {
                        model::SequenceState state = model_.new_state(case_.context);
                        for (int64_t begin = 0; begin < case_.context; begin += options_.chunk_rows) {
                          const int64_t count = std::min(options_.chunk_rows, case_.context - begin);
                          const model::Run run{.begin = 0, .count = count, .position = begin, .state = &state};
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
  train::Batch batch_;
  std::optional<optim::Optimizer> optimizer_;
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

Status run(const Options& options) {
  const c10::Device device = LATHE_TRY(gpu::open(options.device));
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
      if (m.error.empty()) m.ceiling_share = work_of(config, store, c).total() / m.step.median / ceilings.gemm_flops;
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
  app.add_option("--repeats", options.repeats)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--device", options.device)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const lathe::Status status = lathe::run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "gpu_bench: %s\n", status.error().message.c_str());
  return 1;
}
