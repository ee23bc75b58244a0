// A data file for training: JSON lines to tokenised examples.
//
// Errors: a bad line is kInvalidArgument that begins with "FILE:LINE: "; nothing is returned unless every line is good.
// Memory: the examples of the whole file, 8 bytes per token.
// Threads: pure but for reading the file. Formats: docs/training.md
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "api/requests.h"
#include "base/result.h"
#include "data/example.h"
#include "text/text.h"

namespace lathe::api {

enum class TrainingFormat {
  kConversations,  // OpenAI's fine-tuning lines; one example each
  kPreferences,    // OpenAI's preference lines; two examples each: 2i is preferred to 2i + 1
};

struct TrainingFile {
  std::vector<data::Example> examples;
  std::string hash;  // BLAKE3 of the file's bytes, hexadecimal
};

// The one way from a conversation to what is taught: its graded tokens, and the example made of them (which may be
// those of another tokenizer). Refuses what a model of these limits cannot take (data::validate).
Result<text::GradedTokens> graded_tokens(const LearnExample& example, const text::Text& text);
Result<data::Example> to_example(const text::GradedTokens& graded, int64_t vocab_size, int64_t max_positions);

// Every example is valid for a model of these limits (data::validate). Empty lines are skipped; a file without any
// example is refused.
Result<TrainingFile> read_training_file(const std::string& path, TrainingFormat format, const text::Text& text,
                                        int64_t vocab_size, int64_t max_positions);

}  // namespace lathe::api
