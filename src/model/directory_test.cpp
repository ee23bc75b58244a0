// Checkpoints as they are found in the field: a head stored beside its tie, numbers of two types, leftovers of other
// layers, tokenizers of other sizes. What serves them must treat them right, or say by name what is wrong.
#include "model/directory.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "delta/numbers.h"
#include "delta/test_dir.h"
#include "model/model.h"
#include "model/test_golden.h"
#include "weights/live_tensors.h"

namespace lathe::model {
namespace {

using Json = nlohmann::json;
using delta::Dtype;

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

struct Stored {
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;
  std::string bytes;

  Stored as(Dtype other) const {
    Stored out{.dtype = other, .shape = shape};
    out.bytes.resize(bytes.size() / static_cast<size_t>(delta::dtype_size(dtype)) *
                     static_cast<size_t>(delta::dtype_size(other)));
    delta::convert(dtype, std::as_bytes(std::span(bytes)), other, std::as_writable_bytes(std::span(out.bytes)));
    return out;
  }
};
using Checkpoint = std::map<std::string, Stored>;

std::string golden(const std::string& family) {
  return LATHE_SOURCE_DIR "/tests/golden/" + family;
}

Checkpoint read_golden(const std::string& family) {
  Checkpoint out;
  const auto dir = delta::ModelDir::open(io::posix_env(), golden(family)).value();
  for (const delta::Shard& shard : dir.shards()) {
    for (const delta::TensorInfo& info : shard.header.tensors) {
      Stored& stored =
          out[info.name] = {.dtype = info.dtype, .shape = info.shape, .bytes = std::string(info.size(), 0)};
      EXPECT_TRUE(dir.read(info.name, std::as_writable_bytes(std::span(stored.bytes))).ok());
    }
  }
  return out;
}

// A golden model's directory with something changed.
class Field {
 public:
  explicit Field(const std::string& family = "llama") : tensors(read_golden(family)) {
    config = Json::parse(io::read_text(io::posix_env(), golden(family) + "/config.json").value());
  }

  Result<LoadedModel> load(const weights::Placement& placement = {}) {
    std::vector<delta::TensorInfo> infos;
    std::string data;
    for (const auto& [name, stored] : tensors) {
      infos.push_back({.name = name, .dtype = stored.dtype, .shape = stored.shape});
      data += stored.bytes;
    }
    dir.write("model.safetensors", delta::format_header(infos, {}) + data);
    dir.write("config.json", config.dump());
    return load_model(io::posix_env(), dir.path(), placement);
  }
  // What loading says. Shapes alone must be enough for what needs no numbers: `doctor` and a dry run look at no more.
  std::string refusal(bool of_headers = true) {
    const auto loaded = load();
    if (loaded.ok()) return "loaded";
    const auto shapes = load({.device = at::kMeta});
    EXPECT_EQ(shapes.ok(), !of_headers);
    return loaded.error().message;
  }

  delta::TestDir dir;
  Checkpoint tensors;
  Json config;
};

#define EXPECT_SAYS(text, ...)                                          \
  for (const std::string& word : std::vector<std::string>{__VA_ARGS__}) \
  EXPECT_NE((text).find(word), std::string::npos) << "no '" << word << "' in: " << (text)

at::Tensor logits_of(const Model& model) {
  const at::Tensor ids = at::arange(3, 43, at::kLong);
  SequenceState state = model.new_state(ids.size(0));
  const SequenceRows rows{.begin = 0, .count = ids.size(0), .position = 0, .state = &state};
  return model.logits(model.forward(ids, {&rows, 1}));
}

TEST(StoredHead, ThatEqualsTheEmbeddingIsTheEmbeddingForWhoeverWrites) {
  Field field;
  ASSERT_TRUE(field.config["tie_word_embeddings"].get<bool>() && !field.tensors.contains(kHead));
  const auto plain = field.load();
  field.tensors[kHead] = field.tensors[kEmbedding];
  const auto both = field.load();
  ASSERT_TRUE(both.ok()) << both.error().message;
  EXPECT_TRUE(at::equal(logits_of(*plain->model), logits_of(*both->model)));
  EXPECT_EQ(both->store->part_count(), plain->store->part_count());
  EXPECT_EQ(both->store->byte_count(), plain->store->byte_count());
  // A sync reads the live weights through this: both names must give what was learned.
  const weights::LiveTensors live(*both->store);
  both->store->find_part(kEmbedding)->data[1][2] = 0.75F;
  ASSERT_EQ(live.size(kHead), field.tensors[kHead].bytes.size());
  std::vector<std::byte> head(field.tensors[kHead].bytes.size()), embedding(head.size());
  ASSERT_TRUE(live.read(kHead, 0, head).ok() && live.read(kEmbedding, 0, embedding).ok());
  EXPECT_EQ(head, embedding);
  EXPECT_NE(std::memcmp(head.data(), field.tensors[kHead].bytes.data(), head.size()), 0);
  EXPECT_FALSE(weights::LiveTensors(*plain->store).size(kHead).has_value());
}

TEST(StoredHead, ThatDiffersIsRefusedByName) {
  Field field;
  field.tensors[kHead] = field.tensors[kEmbedding];
  field.tensors[kHead].bytes.back() ^= 1;
  EXPECT_SAYS(field.refusal(/*of_headers=*/false), kHead, kEmbedding, "tie_word_embeddings", "other numbers");
  field.tensors[kHead] = field.tensors[kEmbedding].as(Dtype::kBF16);
  EXPECT_SAYS(field.refusal(), kHead, kEmbedding, "type");
  // As the message says: a head of its own.
  field.config["tie_word_embeddings"] = false;
  field.tensors[kHead] = field.tensors[kEmbedding];
  field.tensors[kHead].bytes.back() ^= 1;
  const auto untied = field.load();
  ASSERT_TRUE(untied.ok()) << untied.error().message;
  EXPECT_NE(untied->store->find_part(kHead), untied->store->find_part(kEmbedding));
}

TEST(StoredHead, ThatIsMissingIsExplained) {
  Field field;
  field.config["tie_word_embeddings"] = false;
  EXPECT_SAYS(field.refusal(), kHead, "set tie_word_embeddings to true");
}

class EveryFamily : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Golden, EveryFamily, ::testing::ValuesIn(kGoldenFamilies));

// BF16 matrices, and vectors as wide as they were: what they give is what the model gives that is BF16 throughout, but
// for the rounding of the vectors.
TEST_P(EveryFamily, ServesVectorsWiderThanItsMatrices) {
  Field field(GetParam());
  Field narrow(GetParam());
  for (auto& [name, stored] : field.tensors) {
    narrow.tensors[name] = stored.as(Dtype::kBF16);
    if (stored.shape.size() > 1) stored = stored.as(Dtype::kBF16);
  }
  const auto mixed = field.load(), plain = narrow.load();
  ASSERT_TRUE(mixed.ok()) << mixed.error().message;
  ASSERT_TRUE(plain.ok()) << plain.error().message;
  const at::Tensor logits = logits_of(*mixed->model), expected = logits_of(*plain->model);
  EXPECT_EQ(logits.scalar_type(), at::kBFloat16);
  const auto wide = [](const at::Tensor& t) { return t.to(at::kFloat); };
  EXPECT_LT(((wide(logits) - wide(expected)).norm() / wide(expected).norm()).item<double>(), 0.05);
  EXPECT_EQ(mixed->store->find_part("model.norm.weight")->data.scalar_type(), at::kFloat);
}

TEST(Types, OfMatricesThatDifferAreRefusedByName) {
  Field field;
  const std::string name = "model.layers.1.mlp.down_proj.weight";
  field.tensors[name] = field.tensors[name].as(Dtype::kBF16);
  EXPECT_SAYS(field.refusal(), name, kEmbedding, "BF16", "F32", "lathe convert");
}

TEST(Types, ThatAreNotServedNameTheRemedy) {
  Field field;
  Stored& norm = field.tensors["model.norm.weight"];
  norm.dtype = Dtype::kF16;
  norm.bytes.resize(norm.bytes.size() / 2);
  EXPECT_SAYS(field.refusal(), "model.norm.weight", "F16", "lathe convert");
}

TEST(Leftovers, OfLayersAreRefusedAndBuffersAreNot) {
  Field field;
  field.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {.shape = {1}, .bytes = "1234"};
  field.tensors["model.visual.patch.weight"] = {.shape = {1}, .bytes = "1234"};
  EXPECT_EQ(field.refusal(), "loaded");
  field.tensors["model.layers.0.self_attn.q_proj.bias"] = {.shape = {1}, .bytes = "1234"};
  EXPECT_SAYS(field.refusal(), "model.layers.0.self_attn.q_proj.bias", "attention_bias");
  field.tensors.erase("model.layers.0.self_attn.q_proj.bias");
  field.config["num_hidden_layers"] = 2;  // of three
  EXPECT_SAYS(field.refusal(), "model.layers.2.", "num_hidden_layers");
}

TEST(Numbers, ThatAreNotFiniteAreFoundWithoutLoading) {
  Field field;
  const std::string name = "model.layers.2.mlp.up_proj.weight";
  const float infinite = std::numeric_limits<float>::infinity();
  std::memcpy(field.tensors[name].bytes.data() + 40, &infinite, sizeof infinite);
  const std::string said = field.refusal(/*of_headers=*/false);
  const auto config = read_config(io::posix_env(), field.dir.path());
  const auto dir = delta::ModelDir::open(io::posix_env(), field.dir.path());
  ASSERT_TRUE(config.ok() && dir.ok());
  EXPECT_SAYS(said, name, "NaN or infinite");
  const Status checked = check_numbers(*config, *dir);
  ASSERT_FALSE(checked.ok());
  EXPECT_SAYS(checked.error().message, name, "NaN or infinite");
  const auto whole = delta::ModelDir::open(io::posix_env(), golden("llama"));
  EXPECT_TRUE(check_numbers(*config, *whole).ok());
}

TEST(Tokens, ThatTheTemplateWritesNeedARow) {
  const auto text = text::Text::load(io::posix_env(), LATHE_SOURCE_DIR "/tests/golden/text/own").value();
  ModelConfig config;
  config.vocab_size = 605;
  EXPECT_TRUE(check_tokens(config, text).ok());
  config.vocab_size = 604;  // one token that no prompt has, has no row
  EXPECT_TRUE(check_tokens(config, text).ok());
  config.vocab_size = 601;
  const Status special = check_tokens(config, text);
  ASSERT_FALSE(special.ok());
  EXPECT_SAYS(special.error().message, "'<|im_start|>' (601)", "the model has 601");
  config.vocab_size = 500;
  const Status vocabulary = check_tokens(config, text);
  ASSERT_FALSE(vocabulary.ok());
  EXPECT_SAYS(vocabulary.error().message, "the tokenizer has 605", "the model has 500");
}

}  // namespace
}  // namespace lathe::model
