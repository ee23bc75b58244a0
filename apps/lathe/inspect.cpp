// `lathe inspect`: what is in a model directory, a safetensors file, an optimizer state or a delta. Reads headers, and
// of optimizer states the numbers; changes nothing.
#include <ATen/ATen.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "commands.h"
#include "delta/delta_reader.h"
#include "delta/model_dir.h"
#include "delta/paths.h"
#include "history/applied.h"
#include "history/history.h"
#include "io/env.h"
#include "optim/state_file.h"
#include "report.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kDeltaMagic = "LATHEdlt";
constexpr std::string_view kOptimizerFormat = "lathe optimizer state";

Json tensors_of(const delta::Header& header, const std::string& file = "") {
  Json tensors = Json::array();
  for (const delta::TensorInfo& info : header.tensors) {
    Json& tensor = tensors.emplace_back(Json{
        {"name", info.name}, {"dtype", delta::dtype_name(info.dtype)}, {"shape", info.shape}, {"bytes", info.size()}});
    if (!file.empty()) tensor["file"] = file;
  }
  return tensors;
}

// Sums of what `tensors` lists.
void add_totals(Json& out) {
  uint64_t bytes = 0, elements = 0;
  std::map<std::string, uint64_t> by_dtype;
  for (const Json& tensor : out["tensors"]) {
    uint64_t count = 1;
    for (const Json& size : tensor["shape"]) count *= size.get<uint64_t>();
    elements += count, bytes += tensor["bytes"].get<uint64_t>();
    by_dtype[tensor["dtype"].get<std::string>()] += count;
  }
  out["elements"] = elements;
  out["bytes"] = bytes;
  out["elements_by_dtype"] = by_dtype;
}

// ---- optimizer states

double rms(const at::Tensor& t) {
  return t.numel() > 0 ? t.to(at::kDouble).square().mean().sqrt().item<double>() : 0;
}

Json optimizer_json(const optim::OptimizerState& state) {
  Json out = {{"kind", "optimizer state"}, {"settings", state.settings}, {"tensors", Json::array()}};
  std::map<std::string, Json> by_tensor;
  uint64_t bytes = 0;
  for (const auto& [key, tensor] : state.tensors) {
    const size_t dot = key.rfind('.');
    const std::string name = key.substr(0, dot), what = key.substr(dot + 1);
    Json& entry = by_tensor[name];
    bytes += tensor.nbytes();
    if (what == "m") entry["m_shape"] = tensor.sizes().vec(), entry["m_rms"] = rms(tensor);
    if (what == "v") entry["v_mean"] = tensor.numel() > 0 ? tensor.mean(at::kDouble).item<double>() : 0;
    if (what == "updates") entry["updates"] = tensor.item<int64_t>();
    if (what == "norm") entry["norm"] = tensor.item<double>();
    if (what == "shadow") entry["shadow_shape"] = tensor.sizes().vec();
  }
  for (const auto& [name, entry] : by_tensor) {
    Json& tensor = out["tensors"].emplace_back(Json{{"name", name}});
    tensor.update(entry);
  }
  out["bytes"] = bytes;
  return out;
}

void print_optimizer(const Json& state, const char* indent = "") {
  const Json& settings = state["settings"];
  std::printf("%soptimizer state, %s:", indent, mebibytes(state["bytes"]).c_str());
  for (const auto& [name, value] : settings.items())
    std::printf(" %s %s;", name.c_str(), value.get<std::string>().c_str());
  std::printf(" %zu tensors\n", state["tensors"].size());
}

void print_optimizer_tensors(const Json& state) {
  std::printf("%8s  %10s  %10s  %10s  %-18s %s\n", "updates", "m (rms)", "v (mean)", "norm", "shape of m, v", "tensor");
  for (const Json& t : state["tensors"]) {
    const bool moments = t.contains("updates");
    if (moments) {
      std::printf("%8ld  %10.3g  %10.3g  %10.3g  %-18s %s%s\n", static_cast<long>(t["updates"]),
                  t["m_rms"].get<double>(), t["v_mean"].get<double>(), t["norm"].get<double>(),
                  shape_text(t["m_shape"].get<std::vector<int64_t>>()).c_str(), t["name"].get<std::string>().c_str(),
                  t.contains("shadow_shape") ? " (and an fp32 shadow)" : "");
    } else {
      std::printf("%8s  %10s  %10s  %10s  %-18s %s (an fp32 shadow)\n", "", "", "", "", "",
                  t["name"].get<std::string>().c_str());
    }
  }
}

// ---- deltas

Result<Json> inspect_delta(io::Env& env, const std::string& path) {
  const delta::DeltaReader reader = LATHE_TRY(delta::DeltaReader::open(env, path));
  std::map<std::string, uint64_t> changed, payload;
  for (const delta::DeltaTile& tile : reader.tiles()) {
    const std::string& file = reader.files().at(tile.id.file).name;
    ++changed[file], payload[file] += tile.payload_size;
  }
  Json out = {{"kind", "delta"},
              {"from_version", reader.info().from_version},
              {"to_version", reader.info().to_version},
              {"time_ms", reader.info().time_ms},
              {"from_root", reader.info().from_root.hex()},
              {"to_root", reader.info().to_root.hex()},
              {"bytes", reader.file_bytes()},
              {"files", Json::array()},
              {"attachments", Json::array()}};
  for (const delta::FileLayout& file : reader.files()) {
    out["files"].push_back({{"name", file.name},
                            {"bytes", file.size},
                            {"tiles_changed", changed[file.name]},
                            {"payload_bytes", payload[file.name]}});
  }
  for (const delta::DeltaAttachment& attachment : reader.attachments())
    out["attachments"].push_back({{"name", attachment.name}, {"bytes", attachment.size}});
  if (const auto* record = reader.find_attachment(history::kRecordName)) {
    const std::string text = LATHE_TRY(reader.attachment_text(*record));
    const history::VersionRecord parsed = history::parse_record(text);
    out["record"] = {{"kind", parsed.kind}, {"note", parsed.note}};
  }
  if (const auto* attached = reader.find_attachment(history::kOptimizerName)) {
    const std::string bytes = LATHE_TRY(reader.attachment_text(*attached, uint64_t{1} << 40));
    const optim::OptimizerState state = LATHE_TRY(optim::read_state(std::as_bytes(std::span(bytes))));
    out["optimizer"] = optimizer_json(state);
  }
  return out;
}

void print_delta(const Json& delta) {
  std::printf("delta: version %ld -> %ld, %s, %s\n", static_cast<long>(delta["from_version"]),
              static_cast<long>(delta["to_version"]), local_time(delta["time_ms"]).c_str(),
              mebibytes(delta["bytes"]).c_str());
  if (delta.contains("record")) {
    std::printf("made by %s: %s\n", delta["record"]["kind"].get<std::string>().c_str(),
                delta["record"]["note"].get<std::string>().c_str());
  }
  std::printf("roots %.16s -> %.16s\n", delta["from_root"].get<std::string>().c_str(),
              delta["to_root"].get<std::string>().c_str());
  for (const Json& file : delta["files"]) {
    std::printf("  %s: %ld tiles of 2 MiB changed, %s coded (the file has %s)\n",
                file["name"].get<std::string>().c_str(), static_cast<long>(file["tiles_changed"]),
                mebibytes(file["payload_bytes"]).c_str(), mebibytes(file["bytes"]).c_str());
  }
  for (const Json& attachment : delta["attachments"]) {
    std::printf("  attached: %s, %ld bytes\n", attachment["name"].get<std::string>().c_str(),
                static_cast<long>(attachment["bytes"]));
  }
  if (!delta.contains("optimizer")) return;
  print_optimizer(delta["optimizer"], "  ");
  print_optimizer_tensors(delta["optimizer"]);
}

// ---- tensors

Result<Json> inspect_safetensors(io::Env& env, const std::string& path, const io::RandomAccessFile& file) {
  const delta::Header header = LATHE_TRY(delta::read_header(file).at(path));
  const auto format = header.metadata.find("format");
  if (format != header.metadata.end() && format->second.starts_with(kOptimizerFormat)) {
    const auto map = LATHE_TRY(env.map(path));
    const optim::OptimizerState state = LATHE_TRY(optim::read_state(map->bytes()).at(path));
    return optimizer_json(state);
  }
  Json out = {{"kind", "safetensors"}, {"metadata", header.metadata}, {"tensors", tensors_of(header)}};
  add_totals(out);
  return out;
}

Result<Json> inspect_directory(io::Env& env, const std::string& path) {
  const delta::ModelDir dir = LATHE_TRY(delta::ModelDir::open(env, path));
  Json out = {{"kind", "model directory"}, {"config", nullptr}, {"version", nullptr}, {"tensors", Json::array()}};
  if (LATHE_TRY(env.exists(path + "/config.json"))) {
    const std::string text = LATHE_TRY(io::read_text(env, path + "/config.json"));
    const Json config = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (config.is_object()) out["config"] = config;
  }
  // As it stands: what a crash left is for the commands that may change something.
  const auto applied = history::read_version(env, path);
  if (applied.ok()) out["version"] = *applied;
  for (const delta::Shard& shard : dir.shards()) {
    for (const Json& tensor : tensors_of(shard.header, shard.file)) out["tensors"].push_back(tensor);
  }
  add_totals(out);
  return out;
}

void print_tensors(const Json& out) {
  if (out.value("config", Json()).is_object()) {
    const Json& text = out["config"].contains("text_config") ? out["config"]["text_config"] : out["config"];
    std::printf("%s:", out["config"].value("model_type", "?").c_str());
    for (const char* name : {"num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
                             "num_key_value_heads", "vocab_size", "max_position_embeddings"}) {
      if (text.contains(name)) std::printf(" %s %s;", name, text[name].dump().c_str());
    }
    std::puts("");
  }
  if (out.contains("version") && out["version"].is_number())
    std::printf("version %ld\n", static_cast<long>(out["version"]));
  if (out.contains("metadata")) {
    for (const auto& [name, value] : out["metadata"].items())
      std::printf("%s: %s\n", name.c_str(), value.get<std::string>().c_str());
  }
  for (const Json& tensor : out["tensors"]) {
    std::printf("%-5s %-18s %12s  %s\n", tensor["dtype"].get<std::string>().c_str(),
                shape_text(tensor["shape"].get<std::vector<int64_t>>()).c_str(), mebibytes(tensor["bytes"]).c_str(),
                tensor["name"].get<std::string>().c_str());
  }
  std::printf("%zu tensors, %ld elements (", out["tensors"].size(), static_cast<long>(out["elements"]));
  const char* comma = "";
  for (const auto& [dtype, count] : out["elements_by_dtype"].items()) {
    std::printf("%s%ld %s", comma, static_cast<long>(count), dtype.c_str());
    comma = ", ";
  }
  std::printf("), %s\n", mebibytes(out["bytes"]).c_str());
}

Result<Json> inspect(const std::string& path) {
  io::Env& env = io::posix_env();
  if (LATHE_TRY(env.stat(path)).is_directory) return inspect_directory(env, path);
  const auto file = LATHE_TRY(env.open_read(path));
  std::string magic(kDeltaMagic.size(), '\0');
  if (file->size() >= magic.size()) LATHE_TRY(file->read_at(0, std::as_writable_bytes(std::span(magic))));
  if (magic == kDeltaMagic) return inspect_delta(env, path);
  return inspect_safetensors(env, path, *file);
}

void print(const Json& out) {
  const std::string kind = out["kind"].get<std::string>();
  if (kind == "delta") return print_delta(out);
  if (kind != "optimizer state") return print_tensors(out);
  print_optimizer(out);
  print_optimizer_tensors(out);
}

}  // namespace

Action add_inspect(CLI::App& app) {
  struct Options {
    std::string path;
    bool json = false;
  };
  const auto options = std::make_shared<Options>();
  app.add_option("PATH", options->path, "A model directory, a safetensors file, an optimizer state or a delta")
      ->required();
  app.add_flag("--json", options->json, "Print it as JSON");
  return [options] {
    return report(
        "inspect", options->json, [&] { return inspect(options->path); }, print);
  };
}

}  // namespace lathe::cli
