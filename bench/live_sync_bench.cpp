// What making live weights durable costs, on this machine's GPU or CPU, and how much it slows a server down.
//
// usage: live_sync_bench FOLDER [--gigabytes N] [--device D] [--threads N]
//   FOLDER/live_sync_bench is made, needs about 2.3 N GB, and is removed at the end
// Weights of N GB in bf16 are made on the device and written to a model directory. Then, again and again, they are
// changed and synced as a server does it: nothing changed; one tensor of all; every tensor by one step of training at
// learning rates 1e-6, 1e-5, 1e-4 (normal updates of 0.3 learning rates, stochastic rounding). A table of the seconds
// and rates:
//   compare   find the changed tiles (on a GPU: hashing every weight there)
//   bus       GB of weights that left the device
//   encode    the rest until the delta is durable: reading old and new bytes, coding, decoding both ways, fdatasync;
//             GB/s of changed tiles
//   durable   all of that; applied: until the shards hold the version
//   wait      the longest time that the serving thread waited for the Gate while the sync ran
//   step      a serving step (every weight read once, under the Gate) during the sync: median and longest; and alone
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "delta/model_dir.h"
#include "gpu/device.h"
#include "history/export.h"
#include "history/sync.h"
#include "weights/gate.h"
#include "weights/live_tensors.h"

namespace lathe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kRows = 12288, kColumns = 4096;  // of a tensor: 100 MB, a projection of an 8B model
constexpr size_t kTensorsPerShard = 40;
constexpr auto kSettle = std::chrono::seconds(1);

struct Options {
  std::string folder, device = "auto";
  double gigabytes = 16;
  int threads = 0;
};

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

at::TensorOptions floats(c10::Device device) {
  return at::TensorOptions().dtype(at::kFloat).device(device);
}

weights::WeightStore make_weights(const Options& options, c10::Device device) {
  weights::WeightStore store;
  const auto bytes = static_cast<double>(2 * kRows * kColumns);
  const auto count = std::max<int64_t>(1, std::llround(options.gigabytes * 1e9 / bytes));
  for (int64_t i = 0; i < count; ++i) {
    const std::string name = "layers." + std::to_string(i) + ".weight";
    at::Tensor data = at::empty({kRows, kColumns}, floats(device).dtype(at::kBFloat16));
    data.normal_(0, 0.02);
    store.add(name, std::move(data), {{name, kRows}}, false);
  }
  return store;
}

Status write_directory(const weights::WeightStore& store, const std::string& directory) {
  io::Env& env = io::posix_env();
  LATHE_TRY(env.create_directories(directory));
  const weights::LiveTensors live(store);
  const auto parameters = store.parameters();
  std::vector<std::byte> bytes;
  std::string index;
  for (size_t first = 0; first < parameters.size(); first += kTensorsPerShard) {
    const auto members = parameters.subspan(first, std::min(kTensorsPerShard, parameters.size() - first));
    const std::string name = "model-" + std::to_string(100000 + first).substr(1) + ".safetensors";
    std::vector<delta::TensorInfo> infos;
    for (const auto& parameter : members) {
      infos.push_back({.name = parameter.name, .dtype = delta::Dtype::kBF16, .shape = {kRows, kColumns}});
      index += (index.empty() ? "\"" : ",\"") + parameter.name + "\":\"" + name + "\"";
    }
    const auto file = LATHE_TRY(env.create(directory + "/" + name));
    const std::string header = delta::format_header(infos, {});
    LATHE_TRY(file->append(std::as_bytes(std::span(header))));
    for (const auto& parameter : members) {
      bytes.resize(parameter.data.nbytes());
      LATHE_TRY(live.read(parameter.name, 0, bytes));
      LATHE_TRY(file->append(bytes));
    }
    LATHE_TRY(file->sync());
    LATHE_TRY(file->close());
  }
  return io::write_text_atomically(env, directory + "/model.safetensors.index.json",
                                   "{\"weight_map\":{" + index + "}}");
}

// One step of training, as far as a sync can tell: normal updates, rounded stochastically.
void train(const weights::WeightStore& store, weights::Gate& gate, c10::Device device, double rate, size_t tensors) {
  const weights::Gate::Exclusive alone(gate);
  for (const auto& parameter : store.parameters().first(tensors)) {
    at::Tensor moved = parameter.data.to(at::kFloat);
    moved.add_(at::randn(moved.sizes(), floats(device)), 0.3 * rate);
    at::Tensor bits = moved.view(at::kInt);
    bits.add_(at::randint(1 << 16, bits.sizes(), floats(device).dtype(at::kInt))).bitwise_and_(-65536);
    parameter.data.copy_(moved);
  }
  gpu::synchronize(device);
}

// The weights as the sync reads them, counted.
class Counted final : public delta::TensorReader {
 public:
  explicit Counted(const weights::WeightStore& store) : live_(store) {}
  std::optional<uint64_t> size(std::string_view tensor) const override { return live_.size(tensor); }
  Status read(std::string_view tensor, uint64_t offset, std::span<std::byte> out) const override {
    read_ += out.size();
    return live_.read(tensor, offset, out);
  }
  bool hashes_in_place() const override { return live_.hashes_in_place(); }
  Result<std::vector<Hash128>> hash_tiles(std::span<const std::vector<delta::TensorRange>> tiles) const override {
    return live_.hash_tiles(tiles);
  }
  double gigabytes() const { return static_cast<double>(read_) / 1e9; }

 private:
  weights::LiveTensors live_;
  mutable std::atomic<uint64_t> read_ = 0;
};

// A server that always has something to do: step after step reads every weight, on its own stream, under the Gate.
class Server {
 public:
  struct Felt {
    double longest_wait = 0, median_step = 0, longest_step = 0;
  };

  Server(const weights::WeightStore& store, weights::Gate& gate, c10::Device device)
      : thread_([this, &store, &gate, device](std::stop_token stop) { run(store, gate, device, stop); }) {}

  // Of the steps since the last call.
  Felt felt() {
    const std::lock_guard hold(mutex_);
    Felt felt;
    for (const double wait : waits_) felt.longest_wait = std::max(felt.longest_wait, wait);
    std::sort(steps_.begin(), steps_.end());
    if (!steps_.empty()) felt.median_step = steps_[steps_.size() / 2], felt.longest_step = steps_.back();
    waits_.clear();
    steps_.clear();
    return felt;
  }

 private:
  void run(const weights::WeightStore& store, weights::Gate& gate, c10::Device device, const std::stop_token& stop) {
    const at::NoGradGuard no_grad;
    const gpu::OwnStream own(device);
    const at::Tensor x = at::ones({1, kColumns}, floats(device).dtype(at::kBFloat16));
    while (!stop.stop_requested()) {
      const auto begin = Clock::now();
      const weights::Gate::Shared shared(gate);
      const double wait = seconds_since(begin);
      for (const auto& parameter : store.parameters()) at::linear(x, parameter.data);
      gpu::synchronize(device);
      const std::lock_guard hold(mutex_);
      waits_.push_back(wait);
      steps_.push_back(seconds_since(begin));
    }
  }

  std::mutex mutex_;
  std::vector<double> waits_, steps_;
  std::jthread thread_;
};

struct Row {
  std::string name;
  history::SyncReport report;
  double bus = 0;  // GB; 0 where there is none to cross
  Server::Felt felt;
};

// A number, or nothing where there is none.
std::string text(double number, int digits) {
  if (number <= 0 || !std::isfinite(number)) return "";
  char out[32];
  std::snprintf(out, sizeof out, "%.*f", digits, number);
  return out;
}

void print(const Row& row, double gigabytes, double step_alone) {
  const auto& r = row.report;
  const double changed = static_cast<double>(r.tiles_changed * kTileBytes) / 1e9;
  const double encode = changed > 0 ? r.durable_seconds - r.compare_seconds : 0;
  std::printf("| %s | %.3f | %s | %s | %s | %s | %.2f | %s | %s | %.2f | %s | %s | %.1f |\n", row.name.c_str(),
              r.compare_seconds, text(gigabytes / r.compare_seconds, 1).c_str(), text(row.bus, 2).c_str(),
              text(encode, 2).c_str(), text(changed / encode, 2).c_str(), r.durable_seconds, text(r.seconds, 2).c_str(),
              text(static_cast<double>(r.delta_bytes) / 1e9, 3).c_str(), 1e3 * row.felt.longest_wait,
              text(1e3 * row.felt.median_step, 1).c_str(), text(1e3 * row.felt.longest_step, 1).c_str(),
              1e3 * step_alone);
  std::fflush(stdout);
}

// Every byte of shards and history, as `lathe verify` reads them.
Status measure_verify(const std::string& directory, int threads) {
  const auto begin = Clock::now();
  const auto report = LATHE_TRY(history::verify(io::posix_env(), directory, threads));
  const double seconds = seconds_since(begin);
  if (!report.damages.empty()) return corruption(report.damages[0].where + ": " + report.damages[0].what);
  const double bytes = static_cast<double>(report.bytes);
  std::printf("\nverify: %.2f GB of shards and history in %.2f s, %.2f GB/s\n", bytes / 1e9, seconds,
              bytes / 1e9 / seconds);
  return {};
}

Status measure(const Options& options, const std::string& directory) {
  const c10::Device device = LATHE_TRY(gpu::open(options.device));
  const at::NoGradGuard no_grad;
  at::manual_seed(1);
  const weights::WeightStore store = make_weights(options, device);
  const double gigabytes = static_cast<double>(store.byte_count()) / 1e9;
  std::fprintf(stderr, "%.2f GB on %s; writing %s\n", gigabytes, device.str().c_str(), directory.c_str());
  LATHE_TRY(write_directory(store, directory));
  const gpu::OwnStream own(device);
  weights::Gate gate;
  const history::SyncOptions sync_options{.apply = {.threads = options.threads}};
  const auto sync = [&](Counted& live) { return history::sync(io::posix_env(), directory, live, {}, sync_options); };
  {
    Counted live(store);
    const auto begin = Clock::now();
    LATHE_TRY(sync(live));
    std::fprintf(stderr, "version 0 made durable and hashed in %.2f s\n", seconds_since(begin));
  }
  Server server(store, gate, device);
  std::this_thread::sleep_for(kSettle);
  const double alone = server.felt().median_step;
  std::printf("%.2f GB of bf16 weights on %s, %d threads\n\n", gigabytes, device.str().c_str(),
              options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency()));
  std::printf(
      "| change | compare s | GB/s | bus GB | encode s | GB/s | durable s | applied s | delta GB | wait ms | step ms | "
      "longest | alone |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  const size_t all = store.parameters().size();
  const std::vector<std::tuple<const char*, double, size_t>> cases = {{"none", 0, 0},
                                                                      {"one tensor, lr 1e-5", 1e-5, 1},
                                                                      {"all, lr 1e-6", 1e-6, all},
                                                                      {"all, lr 1e-5", 1e-5, all},
                                                                      {"all, lr 1e-4", 1e-4, all}};
  for (const auto& [name, rate, tensors] : cases) {
    train(store, gate, device, rate, tensors);
    Counted live(store);
    std::this_thread::sleep_for(kSettle);  // the wait for the commit just made is not the sync's
    server.felt();
    const auto report = LATHE_TRY(sync(live));
    const double bus = device.is_cuda() ? live.gigabytes() : 0;
    print({.name = name, .report = report, .bus = bus, .felt = server.felt()}, gigabytes, alone);
  }
  return measure_verify(directory, options.threads);
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  lathe::Options options;
  CLI::App app("What making live weights durable costs");
  app.add_option("folder", options.folder, "where a model directory may be made")->required();
  app.add_option("--gigabytes", options.gigabytes, "of weights");
  app.add_option("--device", options.device, "auto, cpu, cuda or cuda:N");
  app.add_option("--threads", options.threads, "of comparing and coding; 0: all");
  CLI11_PARSE(app, argc, argv);
  const std::string directory = options.folder + "/live_sync_bench";
  const lathe::Status done = lathe::measure(options, directory);
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
  if (done.ok()) return 0;
  std::fprintf(stderr, "live_sync_bench: %s\n", done.error().message.c_str());
  return 1;
}
