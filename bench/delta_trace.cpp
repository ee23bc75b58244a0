// A real training trace for bench/delta_bench: trains a model in place on given texts and writes its weights after 1,
// 10 and 60 steps, as a server that syncs then would.
//
// usage: delta_trace MODEL_DIR TEXTS OUT LEARNING_RATE
// TEXTS: one JSON string per line, each cut to kTokens tokens. Writes OUT/STEPS.safetensors with the model's own
// header. bench/delta_trace.py makes TEXTS, runs this once per learning rate and keeps the result in the cache.
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "delta/model_dir.h"
#include "io/env.h"
#include "model/model.h"
#include "text/text.h"
#include "train/trainer.h"
#include "weights/live_tensors.h"

namespace lathe {
namespace {

constexpr int64_t kTokens = 128, kBatch = 2, kSteps = 60;
constexpr int64_t kSnapshots[] = {1, 10, kSteps};

Result<std::vector<data::Example>> read_examples(io::Env& env, const std::string& directory, const char* path) {
  const text::Text text = LATHE_TRY(text::Text::load(env, directory));
  std::vector<data::Example> examples;
  std::ifstream lines(path);
  for (std::string line; std::getline(lines, line) && std::ssize(examples) < kBatch * kSteps;) {
    const auto ids = LATHE_TRY(text.tokenizer().encode(nlohmann::json::parse(line).get<std::string>())).ids;
    if (std::ssize(ids) < kTokens) continue;
    data::Example example;
    for (int64_t i = 0; i < kTokens; ++i) {
      example.tokens.push_back(static_cast<int32_t>(ids[static_cast<size_t>(i)]));
      example.weights.push_back(i == 0 ? 0.0F : 1.0F);
    }
    examples.push_back(std::move(example));
  }
  if (std::ssize(examples) < kBatch * kSteps) return invalid_argument("too few texts of enough tokens");
  return examples;
}

Status write_snapshot(io::Env& env, const delta::Shard& shard, const weights::WeightStore& store,
                      const std::string& path) {
  std::vector<std::byte> head(shard.header.data_offset);
  LATHE_TRY(shard.data->read_at(0, head));
  const auto file = LATHE_TRY(env.create(path));
  LATHE_TRY(file->append(head));
  const weights::LiveTensors live(store);
  for (const delta::TensorInfo& info : shard.header.tensors) {
    if (!live.size(info.name)) return unsupported("the model does not use " + info.name);
    std::vector<std::byte> bytes(info.size());
    LATHE_TRY(live.read(info.name, 0, bytes));
    LATHE_TRY(file->append(bytes));
  }
  return file->close();
}

Status run(const std::string& directory, const char* texts, const std::string& out, double rate) {
  const at::NoGradGuard no_grad;
  io::Env& env = io::posix_env();
  const auto examples = LATHE_TRY(read_examples(env, directory, texts));
  const auto dir = LATHE_TRY(delta::ModelDir::open(env, directory));
  if (dir.shards().size() != 1) return unsupported("only models of one shard");
  const model::LoadedModel loaded = LATHE_TRY(model::load_model(env, directory));
  weights::Gate gate;
  train::Trainer trainer(*loaded.model, *loaded.store, gate, {});
  for (int64_t step = 1; step <= kSteps; ++step) {
    const std::span batch(&examples[static_cast<size_t>((step - 1) * kBatch)], kBatch);
    auto proposal = LATHE_TRY(trainer.propose(batch, {.learning_rate = rate}));
    const double loss = proposal.loss;
    const kernels::UpdateStats changes = LATHE_TRY(trainer.commit(std::move(proposal))).commit.total;
    std::fprintf(stderr, "\r  learning rate %g, step %ld: loss %.3f, %.2f %% of the weights changed   ", rate,
                 static_cast<long>(step), loss,
                 100 * static_cast<double>(changes.changed) / static_cast<double>(changes.elements));
    if (std::find(std::begin(kSnapshots), std::end(kSnapshots), step) == std::end(kSnapshots)) continue;
    LATHE_TRY(write_snapshot(env, dir.shards()[0], *loaded.store, out + "/" + std::to_string(step) + ".safetensors"));
  }
  std::fprintf(stderr, "\n");
  return {};
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: delta_trace MODEL_DIR TEXTS OUT LEARNING_RATE\n");
    return 2;
  }
  const lathe::Status done = lathe::run(argv[1], argv[2], argv[3], std::atof(argv[4]));
  if (done.ok()) return 0;
  std::fprintf(stderr, "delta_trace: %s\n", done.error().message.c_str());
  return 1;
}
