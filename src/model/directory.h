// What a model directory must be so that it can be served and taught. `serve`, `train`, `attach` and `doctor` ask the
// same functions, so that what one refuses all refuse, before anything is written.
//
// Threads: pure functions over what they are given.
#pragma once

#include <string>

#include "base/result.h"
#include "delta/model_dir.h"
#include "model/config.h"
#include "text/text.h"
#include "weights/weight_store.h"

namespace lathe::model {

// All that can be seen before anything is locked, created or recovered: that the files are there (other_formats.h),
// what config.json says, and check_tensors(). Errors name the directory.
Status check_directory(io::Env& env, const std::string& directory);

// Headers only: what WeightStore::check() refuses; a stored head of another shape or type than the embedding it is tied
// to; a tensor of the model's own layers that the architecture has no use for.
Status check_tensors(const ModelConfig& config, const delta::ModelDir& dir);

// kInvalidArgument if a head is stored beside the embedding it is tied to and holds other numbers. Reads both.
Status check_stored_head(const ModelConfig& config, const delta::ModelDir& dir);
// That, and kCorruption for NaN or infinite numbers. Reads every tensor of the model once.
Status check_numbers(const ModelConfig& config, const delta::ModelDir& dir);

// Whether the model has a row for each token that a conversation is made of. kInvalidArgument, naming it, if the
// template or the tokenizer's own vocabulary uses one that it has not.
Status check_tokens(const ModelConfig& config, const text::Text& text);

// Lets writers of the checkpoint keep a stored head in step with the embedding that it is tied to, if there is one.
void alias_stored_head(const ModelConfig& config, const delta::ModelDir& dir, weights::WeightStore& store);

}  // namespace lathe::model
