#include "train/run_state.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>
#include <variant>

#include "base/hash.h"
#include "delta/model_dir.h"
#include "delta/safetensors.h"
#include "optim/state_file.h"
#include "weights/live_tensors.h"

namespace lathe::train {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "lathe training state 1";
constexpr const char* kSlots[] = {"a", "b", "c"};
constexpr const char* kWeights = "/model.safetensors";
constexpr const char* kOptimizer = "/optimizer.safetensors";
constexpr const char* kNew = ".lathe-new";
constexpr uint64_t kBlockBytes = uint64_t{4} << 20;

// One column per field, so that a long history stays small.
struct Column {
  const char* name;
  std::variant<double StepRecord::*, int64_t StepRecord::*> field;
};
constexpr Column kColumns[] = {{"epoch", &StepRecord::epoch},
                               {"loss", &StepRecord::loss},
                               {"learning_rate", &StepRecord::learning_rate},
                               {"gradient_norm", &StepRecord::gradient_norm},
                               {"update_norm", &StepRecord::update_norm},
                               {"limiter", &StepRecord::limiter},
                               {"limited", &StepRecord::limited},
                               {"changed", &StepRecord::changed_fraction},
                               {"realised", &StepRecord::realised},
                               {"tokens", &StepRecord::tokens},
                               {"graded", &StepRecord::graded_tokens},
                               {"seconds", &StepRecord::seconds}};

Json to_json(const std::vector<StepRecord>& steps) {
  Json json = Json::object();
  for (const Column& column : kColumns) {
    Json& values = json[column.name] = Json::array();
    for (const StepRecord& record : steps)
      std::visit([&](auto field) { values.push_back(record.*field); }, column.field);
  }
  return json;
}

std::vector<StepRecord> steps_of(const Json& json, int64_t count) {
  std::vector<StepRecord> steps(count);
  for (int64_t i = 0; i < count; ++i) {
    steps[i].step = i + 1;
    for (const Column& column : kColumns) {
      std::visit([&](auto field) { json.at(column.name).at(i).get_to(steps[i].*field); }, column.field);
    }
  }
  return steps;
}

std::string to_text(const RunState& state) {
  Json json = {{"format", kFormat},
               {"step", state.step},
               {"settings", state.settings},
               {"slot", state.slot},
               {"best_slot", state.best_slot},
               {"installs", state.installs},
               {"history", to_json(state.steps)},
               {"evaluations", Json::array()}};
  for (const Evaluation& evaluation : state.evaluations)
    json["evaluations"].push_back({evaluation.step, evaluation.loss});
  return json.dump();
}

bool is_slot(const std::string& name) {
  return std::find(std::begin(kSlots), std::end(kSlots), name) != std::end(kSlots);
}

// Throws what nlohmann::json throws when a field is missing or of another type.
RunState from_json(const Json& json) {
  RunState state{.step = json.at("step").get<int64_t>(),
                 .settings = json.at("settings").get<std::map<std::string, std::string>>(),
                 .slot = json.at("slot").get<std::string>(),
                 .best_slot = json.at("best_slot").get<std::string>(),
                 .installs = json.at("installs").get<std::string>()};
  state.steps = steps_of(json.at("history"), state.step);
  for (const Json& pair : json.at("evaluations"))
    state.evaluations.push_back({pair.at(0).get<int64_t>(), pair.at(1).get<double>()});
  return state;
}

delta::Dtype file_dtype(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat ? delta::Dtype::kF32 : delta::Dtype::kBF16;
}

// All weights in order, from whatever device they are on, a few MiB at a time.
Status for_each_block(const weights::WeightStore& store,
                      const std::function<Status(const weights::Part&, std::span<const std::byte>)>& visit) {
  const weights::LiveTensors live(store);
  std::vector<std::byte> block;
  for (const weights::Parameter& parameter : store.parameters()) {
    for (const weights::Part& part : parameter.parts) {
      const uint64_t size = part.data.nbytes();
      for (uint64_t done = 0; done < size; done += block.size()) {
        block.resize(std::min<uint64_t>(kBlockBytes, size - done));
        LATHE_TRY(live.read(part.name, done, block));
        LATHE_TRY(visit(part, block));
      }
    }
  }
  return {};
}

Status write_weights(const weights::WeightStore& store, io::WritableFile& file) {
  std::vector<delta::TensorInfo> infos;
  for (const weights::Parameter& parameter : store.parameters()) {
    for (const weights::Part& part : parameter.parts)
      infos.push_back({.name = part.name, .dtype = file_dtype(part.data), .shape = part.data.sizes().vec()});
  }
  const std::string header = delta::format_header(infos, {{"format", "pt"}});
  LATHE_TRY(file.append(std::as_bytes(std::span(header))));
  return for_each_block(store,
                        [&](const weights::Part&, std::span<const std::byte> block) { return file.append(block); });
}

// One that the state on disk does not need: it has one for its weights, and may have another for the best.
std::string free_slot(const std::optional<RunState>& on_disk) {
  for (const char* slot : kSlots) {
    if (!on_disk || (slot != on_disk->slot && slot != on_disk->best_slot)) return slot;
  }
  LATHE_CHECK(!"three slots, two in use");
  return {};
}

// Durable under `path` once its directory is synced.
Status write_file(io::Env& env, const std::string& path, const std::function<Status(io::WritableFile&)>& write) {
  const auto file = LATHE_TRY(env.create(path + kNew));
  LATHE_TRY(write(*file));
  LATHE_TRY(file->sync());
  LATHE_TRY(file->close());
  return env.rename(path + kNew, path);
}

}  // namespace

RunDirectory::RunDirectory(io::Env& env, const std::string& model_directory)
    : env_(env), path_(model_directory + "/.lathe/train") {}

Result<std::optional<RunState>> RunDirectory::read() const {
  if (!LATHE_TRY(env_.exists(record_path()))) return std::optional<RunState>();
  const Error damaged = corruption(record_path() + " is damaged; --restart discards the run");
  const Json json = Json::parse(LATHE_TRY(io::read_text(env_, record_path())), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return damaged;
  if (json.value("format", Json()) != kFormat) {
    return unsupported(record_path() + " is not of the format '" + kFormat + "'; --restart discards the run");
  }
  try {
    RunState state = from_json(json);
    if (!is_slot(state.slot) || (!state.best_slot.empty() && !is_slot(state.best_slot))) return damaged;
    return std::optional<RunState>(std::move(state));
  } catch (const Json::exception&) {
    return damaged;
  }
}

Status RunDirectory::save(RunState& state, const weights::WeightStore& store, const optim::Optimizer& optimizer,
                          bool best) const {
  const auto on_disk = LATHE_TRY(read());
  state.slot = free_slot(on_disk);
  if (best) state.best_slot = state.slot;
  const std::string slot = slot_path(state.slot);
  LATHE_TRY(io::create_directory_durably(env_, path_));
  LATHE_TRY(io::create_directory_durably(env_, slot));
  LATHE_TRY(write_file(env_, slot + kWeights, [&](io::WritableFile& file) { return write_weights(store, file); }));
  LATHE_TRY(write_file(env_, slot + kOptimizer,
                       [&](io::WritableFile& file) { return optim::write_state(optimizer.state(), file); }));
  LATHE_TRY(env_.sync_directory(slot));
  return save_record(state);
}

Status RunDirectory::save_record(const RunState& state) const {
  return io::write_text_atomically(env_, record_path(), to_text(state));
}

Status RunDirectory::restore_weights(const std::string& slot, weights::WeightStore& store) const {
  const auto dir = LATHE_TRY(delta::ModelDir::open(env_, slot_path(slot)));
  return store.reload(dir);
}

Status RunDirectory::restore_optimizer(const std::string& slot, optim::Optimizer& optimizer) const {
  const auto file = LATHE_TRY(env_.map(slot_path(slot) + kOptimizer));
  return optimizer.restore(LATHE_TRY(optim::read_state(file->bytes())));
}

Status RunDirectory::discard() const {
  if (!LATHE_TRY(env_.exists(path_))) return {};
  LATHE_TRY(io::remove_if_there(env_, record_path()));
  LATHE_TRY(env_.sync_directory(path_));
  return io::remove_tree(env_, path_);
}

Result<std::string> weights_hash(const weights::WeightStore& store) {
  Blake3 hash;
  LATHE_TRY(for_each_block(store, [&](const weights::Part& part, std::span<const std::byte> block) -> Status {
    hash.update(std::as_bytes(std::span(part.name)));
    // XXH3 reads at memory speed, BLAKE3 does not; against accidents both will do.
    const Hash128 bytes = checksum128(block);
    hash.update(std::as_bytes(std::span(&bytes, 1)));
    return {};
  }));
  return hash.finish().hex();
}

}  // namespace lathe::train
