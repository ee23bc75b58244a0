#include "model/directory.h"

#include <algorithm>
#include <array>
#include <set>
#include <vector>

#include "delta/numbers.h"
#include "delta/other_formats.h"
#include "model/model.h"

namespace lathe::model {
namespace {

constexpr const char* kHead = "lm_head.weight";

// The head that is stored although config.json ties it; null if there is none.
const delta::TensorInfo* stored_head(const ModelConfig& config, const delta::ModelDir& dir) {
  return config.tie_embeddings ? dir.find(kHead) : nullptr;
}

std::string embedding_name(const ModelConfig& config) {
  return config.prefix + "embed_tokens.weight";
}

Error differing_head(const ModelConfig& config, const std::string& how) {
  return invalid_argument("config.json says tie_word_embeddings, but the checkpoint's " + std::string(kHead) + " " +
                          how + " " + embedding_name(config) +
                          "; set tie_word_embeddings to false to use it as a head of its own, or remove the tensor");
}

// Buffers that old versions of transformers stored: computed from config.json, they hold nothing of their own.
bool is_computed(std::string_view name) {
  return name.ends_with(".rotary_emb.inv_freq");
}

// A tensor that no parameter is made of. Those of other parts (vision, multi-token prediction) stay as they are; one of
// the layers themselves would change what they compute.
Status check_unused(const ModelConfig& config, const std::string& name) {
  const bool of_layers = name.starts_with(config.prefix + "layers.") || name == "lm_head.bias";
  if (!of_layers || is_computed(name)) return {};
  return unsupported(
      "tensor " + name +
      " is in the checkpoint, but config.json does not call for it; without it the model would be another: "
      "check num_hidden_layers, attention_bias and mlp_bias, and that model_type is the right one");
}

}  // namespace

Status check_directory(io::Env& env, const std::string& directory) {
  LATHE_TRY(delta::check_model_files(env, directory));
  const ModelConfig config = LATHE_TRY(read_config(env, directory));
  const delta::ModelDir dir = LATHE_TRY(delta::ModelDir::open(env, directory));
  LATHE_TRY(check_tensors(config, dir).at(directory));
  if (!LATHE_TRY(env.exists(directory + "/tokenizer.json"))) return delta::no_tokenizer(env, directory);
  return {};
}

Status check_tensors(const ModelConfig& config, const delta::ModelDir& dir) {
  const auto specs = Model::parameter_specs(config);
  if (!config.tie_embeddings && !dir.find(kHead) && dir.find(embedding_name(config))) {
    return invalid_argument("the checkpoint has no " + std::string(kHead) +
                            ", which config.json calls for; if the head is the embedding, as in models that were saved "
                            "without it, set tie_word_embeddings to true in config.json");
  }
  LATHE_TRY(weights::WeightStore::check(dir, specs));
  std::set<std::string_view> used;
  for (const auto& spec : specs) {
    for (const auto& part : spec.parts) used.insert(part.name);
  }
  if (const auto* head = stored_head(config, dir)) {
    const auto* embedding = dir.find(embedding_name(config));
    if (head->shape != embedding->shape || head->dtype != embedding->dtype)
      return differing_head(config, "has another shape or type than");
  }
  for (const delta::Shard& shard : dir.shards()) {
    for (const delta::TensorInfo& info : shard.header.tensors) {
      if (!used.contains(info.name)) LATHE_TRY(check_unused(config, info.name));
    }
  }
  return {};
}

Status check_stored_head(const ModelConfig& config, const delta::ModelDir& dir) {
  const auto* head = stored_head(config, dir);
  if (!head) return {};
  if (!LATHE_TRY(delta::same_numbers(dir, kHead, embedding_name(config))))
    return differing_head(config, "holds other numbers than");
  return {};
}

Status check_numbers(const ModelConfig& config, const delta::ModelDir& dir) {
  for (const auto& spec : Model::parameter_specs(config)) {
    for (const auto& part : spec.parts) LATHE_TRY(delta::check_finite(dir, *dir.find(part.name)));
  }
  return check_stored_head(config, dir);
}

void alias_stored_head(const ModelConfig& config, const delta::ModelDir& dir, weights::WeightStore& store) {
  if (stored_head(config, dir)) store.alias(kHead, embedding_name(config));
}

Status check_tokens(const ModelConfig& config, const text::Text& text) {
  const auto named = [&](text::TokenId id) {
    const auto token = text.tokenizer().id_to_token(id);
    return "'" + (token.ok() ? *token : std::string()) + "' (" + std::to_string(id) + ")";
  };
  const std::string rows = "; the model has " + std::to_string(config.vocab_size) +
                           " (vocab_size): use the tokenizer that it was trained with, or resize its embeddings";
  // Tokens that were added and have no row are common and harmless, as long as nothing uses them.
  const auto added = static_cast<int64_t>(text.tokenizer().added_tokens().size());
  if (text.tokenizer().size() - added > config.vocab_size)
    return invalid_argument("the tokenizer has " + std::to_string(text.tokenizer().size()) + " tokens" + rows);
  if (!text.has_chat_template()) return {};
  const std::array<text::Message, 1> probe = {text::Message{.role = "user", .content = "1"}};
  const auto prompt = text.prompt(probe, {});
  if (!prompt.ok()) return {};  // a template may want more than one message; it says so when it is used
  const auto without =
      std::find_if(prompt->begin(), prompt->end(), [&](text::TokenId id) { return id >= config.vocab_size; });
  if (without != prompt->end())
    return invalid_argument("the chat template writes the token " + named(*without) +
                            ", which has no row in the embedding" + rows);
  return {};
}

}  // namespace lathe::model
