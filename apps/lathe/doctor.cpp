#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/memory.h"
#include "base/units.h"
#include "commands.h"
#include "daemon/attach.h"
#include "delta/model_dir.h"
#include "delta/other_formats.h"
#include "gpu/device.h"
#include "history/sync.h"
#include "io/env.h"
#include "model/config.h"
#include "model/directory.h"
#include "model/model.h"
#include "text/text.h"
#include "train/estimate.h"
#include "vllm/session.h"

namespace lathe::cli {
namespace {

struct Finding {
  std::string name;
  bool ok;
  std::string detail;  // what is, or what to do
};

Finding processor() {
  std::string features, line;
  std::ifstream info("/proc/cpuinfo");
  while (std::getline(info, line) && !line.starts_with("flags")) {
  }
  for (const char* feature : {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}) {
    if ((line + " ").find(std::string(" ") + feature + " ") != std::string::npos)
      features += std::string(features.empty() ? "" : ", ") + feature;
  }
  return {"processor", true,
          std::to_string(std::thread::hardware_concurrency()) + " cores; " +
              (features.empty() ? "no vector extensions Lathe uses: it will be slow" : features)};
}

// Having no GPU is no fault; having one that cannot be used is.
Finding graphics() {
  const auto found = gpu::inventory();
  if (!found.ok()) return {"gpu", true, "none, the CPU is used: " + found.error().message};
  std::string text;
  for (const gpu::DeviceInfo& device : found->devices) {
    text += (text.empty() ? "" : ", ") + device.name + " (compute capability " + std::to_string(device.major) + "." +
            std::to_string(device.minor) + ", " + mebibytes(device.free_bytes) + " of " +
            mebibytes(device.total_bytes) + " free)";
  }
  const auto opened = gpu::open("cuda");
  return {"gpu", opened.ok(),
          text + "; driver for CUDA " + found->driver + (opened.ok() ? "" : "; " + opened.error().message)};
}

class Doctor {
 public:
  explicit Doctor(std::string directory) : directory_(std::move(directory)) {}

  std::vector<Finding> examine() {
    findings_.push_back(processor());
    findings_.push_back(graphics());
    if (directory_.empty()) return findings_;
    if (const Status files = delta::check_model_files(env_, directory_); !files.ok()) {
      findings_.push_back({"files", false, files.error().message});
      writable();
      return findings_;
    }
    const auto config = model::read_config(env_, directory_);
    findings_.push_back({"config", config.ok(), config.ok() ? describe(*config) : config.error().message});
    if (const auto dir = delta::ModelDir::open(env_, directory_); dir.ok()) {
      weights(*dir, config.ok() ? &*config : nullptr);
    } else {
      findings_.push_back({"weights", false, dir.error().message});
    }
    text(config.ok() ? &*config : nullptr);
    writable();
    return findings_;
  }

 private:
  static std::string describe(const model::ModelConfig& config) {
    char base[32];
    std::snprintf(base, sizeof base, "%g", config.rope_theta);
    return std::to_string(config.layers) + " layers, hidden size " + std::to_string(config.hidden_size) +
           ", rotary base " + base + (config.llama3_rope ? " (llama3)" : "") +
           (config.tie_embeddings ? ", head tied to the embedding" : "");
  }

  // By the checks that `serve`, `train` and `attach` refuse by: headers first, then every number.
  static Status check(const model::ModelConfig& config, const delta::ModelDir& dir) {
    LATHE_TRY(model::check_tensors(config, dir));
    return model::check_numbers(config, dir);
  }

  void weights(const delta::ModelDir& dir, const model::ModelConfig* config) {
    uint64_t bytes = 0;
    bool links = false;
    for (const delta::Shard& shard : dir.shards()) {
      bytes += shard.data->size();
      const auto stat = env_.stat(directory_ + "/" + shard.file);
      links |= stat.ok() && stat->is_symlink;
    }
    const Status checked = config ? check(*config, dir) : Status();
    findings_.push_back({"weights", checked.ok(),
                         checked.ok() ? std::to_string(dir.shards().size()) + " shards, " + mebibytes(bytes)
                                      : checked.error().message});
    findings_.push_back(
        {"symbolic links", !links,
         links
             ? "shards are symbolic links, as in a Hugging Face cache; add --materialize, or copy the model with cp -rL"
             : "none"});
    const auto free = env_.free_space(directory_);
    findings_.push_back(
        {"disk", free.ok() && *free > bytes + (64 << 20),
         free.ok() ? mebibytes(*free) + " free; a sync needs up to " + mebibytes(bytes) : free.error().message});
    if (config && checked.ok()) memory(bytes);
  }

  // By the estimate that a running server refuses lessons by.
  void memory(uint64_t weights) {
    const auto available = static_cast<uint64_t>(available_bytes());
    const auto shapes = model::load_model(env_, directory_, {.device = at::kMeta});
    if (!shapes.ok()) {
      findings_.push_back({"memory", false, mebibytes(available) + " available now; " + shapes.error().message});
      return;
    }
    const auto lesson = [&](int64_t tokens) {
      data::Example example{.tokens = std::vector<int32_t>(static_cast<size_t>(tokens), 0),
                            .weights = std::vector<float>(static_cast<size_t>(tokens), 0)};
      std::fill(example.weights.end() - tokens / 2, example.weights.end(), 1.0F);
      train::StepOptions step;
      step.kept_bytes = int64_t{512} << 20;  // as on a CPU
      return static_cast<uint64_t>(
          train::estimate_lesson(shapes->model->config(), *shapes->store, {}, step, {&example, 1}));
    };
    const uint64_t small = lesson(100), large = lesson(1000);
    findings_.push_back({"memory", available > weights + small,
                         mebibytes(available) + " available now; the weights need " + mebibytes(weights) +
                             ", and on a CPU a lesson of 100 tokens, half of them taught, about " + mebibytes(small) +
                             " more, one of 1,000 about " + mebibytes(large)});
  }

  void text(const model::ModelConfig* config) {
    const auto text = text::Text::load(env_, directory_);
    const Status tokens = text.ok() && config ? model::check_tokens(*config, *text) : Status();
    const bool ok = text.ok() && tokens.ok() && text->has_chat_template();
    findings_.push_back({"tokenizer", ok,
                         !text.ok()     ? text.error().message
                         : !tokens.ok() ? tokens.error().message
                         : ok           ? std::to_string(text->tokenizer().size()) + " tokens, with chat template"
                                        : "no chat template: chat and learn will be refused; add chat_template.jinja"});
  }

  void writable() {
    findings_.push_back(usable());
    const auto version = history::read_version(env_, directory_);
    findings_.push_back({"version", version.ok(), version.ok() ? std::to_string(*version) : version.error().message});
  }

  // Touches nothing: where no lathe process ever was, there is no lock to try.
  Finding usable() {
    if (::access(directory_.c_str(), W_OK | X_OK) != 0)
      return {"directory", false, "cannot write to " + directory_ + ": " + std::strerror(errno)};
    const auto lathe = env_.exists(directory_ + "/.lathe");
    if (!lathe.ok()) return {"directory", false, lathe.error().message};
    if (*lathe) {
      const auto lock = delta::lock_directory(env_, directory_);
      if (!lock.ok()) return {"directory", false, lock.error().message};
    }
    return {"directory", true, "writable, no other lathe process"};
  }

  io::Env& env_ = io::posix_env();
  std::string directory_;
  std::vector<Finding> findings_;
};

// What would keep `lathe attach` from teaching a vLLM server, one finding per condition.
class VllmDoctor {
 public:
  explicit VllmDoctor(daemon::AttachOptions options) : options_(std::move(options)) {}

  std::vector<Finding> examine() {
    std::string socket = options_.socket;
    if (socket.empty()) {
      const auto path = options_.server.socket_path();
      if (!add("plugin", path, "loaded")) return findings_;
      socket = *path;
    }
    // A session of its own: connect() stops at the first refusal.
    auto session = vllm::Session::connect(socket);
    if (!add("socket", session, socket + ", of this user alone")) return findings_;
    auto greeting = session->hello();
    if (!add("manifest", greeting, "read")) return findings_;
    manifest_ = std::move(greeting->ranks.front());
    add_conditions();
    compare();
    if (!options_.server.url.empty() && !options_.directory.empty()) {
      const auto text = text::Text::load(env_, options_.directory);
      add("tokens", text.ok() ? daemon::compare_tokens(*text, options_.server) : Status(text.error()),
          "vLLM and the directory agree");
    }
    return findings_;
  }

 private:
  template <class T>
  bool add(const char* name, const Result<T>& result, const std::string& detail) {
    findings_.push_back({name, result.ok(), result.ok() ? detail : result.error().message});
    return result.ok();
  }

  void add_conditions() {
    findings_.push_back({"server", true,
                         manifest_.engine + " " + manifest_.engine_version + ", " + manifest_.architecture + ", " +
                             std::to_string(manifest_.tensors.size()) + " tensors in " +
                             std::to_string(manifest_.memories.size()) + " memories"});
    for (const vllm::Finding& refusal : manifest_.refusals)
      findings_.push_back({refusal.condition, false, refusal.found + "; " + refusal.remedy});
    for (const vllm::Finding& warning : manifest_.warnings)
      findings_.push_back({warning.condition, true, warning.found + "; " + warning.remedy});
  }

  void compare() {
    const auto imported = daemon::import_manifest(env_, options_.directory, manifest_);
    if (!add("mapping", imported, "every weight is where config.json wants one")) return;
    options_.directory = imported->directory;
    room(static_cast<uint64_t>(imported->loaded.store->byte_count()));
    const auto names = daemon::differing(env_, *imported);
    if (!add("weights", names, "every byte is as in " + imported->directory) || names->empty()) return;
    findings_.back() = {"weights", false,
                        std::to_string(names->size()) + " tensors are not as in " + imported->directory +
                            ", the first is " + names->front() +
                            "; a trainer ended without a sync (lathe attach --on-difference ...), or vLLM changed them "
                            "while loading"};
  }

  // What training takes beside the weights, on their GPU. The share is that of Qwen3-8B with 16,384 tokens of context
  // (docs/performance.md); longer corrections take more.
  void room(uint64_t weights) {
    const vllm::Memory& memory = manifest_.memories.front();
    if (memory.kind != vllm::Memory::Kind::kCudaIpc) return;
    const auto found = gpu::inventory();
    if (!found.ok()) return;
    const auto device = std::find_if(found->devices.begin(), found->devices.end(),
                                     [&](const gpu::DeviceInfo& info) { return info.uuid == memory.uuid; });
    if (device == found->devices.end()) return;
    const uint64_t needed = weights * 35 / 100 + (uint64_t{1} << 30), free = static_cast<uint64_t>(device->free_bytes);
    const double share = 1 - static_cast<double>(needed) / static_cast<double>(device->total_bytes);
    char remedy[80];
    std::snprintf(remedy, sizeof remedy, "; start vLLM with --gpu-memory-utilization %.2f", std::max(share, 0.05));
    findings_.push_back({"room", free >= needed,
                         mebibytes(free) + " free on the GPU, a correction needs about " + mebibytes(needed) +
                             (free >= needed ? "" : remedy)});
  }

  io::Env& env_ = io::posix_env();
  daemon::AttachOptions options_;
  vllm::Manifest manifest_;
  std::vector<Finding> findings_;
};

}  // namespace

Action add_doctor(CLI::App& app) {
  struct Options {
    daemon::AttachOptions where;  // its directory is also that of a model alone
    bool json = false;
  };
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->where.directory, "The model directory to examine");
  app.add_option("--vllm", options->where.server.url,
                 "Address of a vLLM server: what would keep `lathe attach` from it");
  app.add_option("--vllm-api-key", options->where.server.api_key, "Key of the vLLM server")->envname("VLLM_API_KEY");
  app.add_option("--socket", options->where.socket, "Socket of vLLM's plugin (default: what vLLM says)");
  app.add_flag("--json", options->json, "Print findings as JSON");
  return [options] {
    const bool vllm = !options->where.server.url.empty() || !options->where.socket.empty();
    std::vector<Finding> findings =
        vllm ? VllmDoctor(options->where).examine() : Doctor(options->where.directory).examine();
    bool all = true;
    auto json = nlohmann::ordered_json::array();
    for (const Finding& finding : findings) {
      all &= finding.ok;
      if (options->json) {
        json.push_back({{"name", finding.name}, {"ok", finding.ok}, {"detail", finding.detail}});
      } else {
        std::printf("%-4s %-15s %s\n", finding.ok ? "ok" : "FAIL", finding.name.c_str(), finding.detail.c_str());
      }
    }
    if (options->json)
      std::printf("%s\n", json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
    return all ? 0 : 1;
  };
}

}  // namespace lathe::cli
