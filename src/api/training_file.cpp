#include "api/training_file.h"

#include <fstream>
#include <span>

#include "api/requests.h"
#include "base/hash.h"

namespace lathe::api {

Result<text::GradedTokens> graded_tokens(const LearnExample& example, const text::Text& text) {
  return text.graded(example.messages, example.turn_weights, example.render);
}

Result<data::Example> to_example(const text::GradedTokens& graded, int64_t vocab_size, int64_t max_positions) {
  data::Example example{.tokens = graded.ids, .weights = graded.weights};
  LATHE_TRY(data::validate(example, vocab_size, max_positions));
  return example;
}

Result<TrainingFile> read_training_file(const std::string& path, TrainingFormat format, const text::Text& text,
                                        int64_t vocab_size, int64_t max_positions) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return not_found("cannot open " + path);
  TrainingFile out;
  Blake3 hash;
  const auto add = [&](const LearnExample& parsed) -> Status {
    const text::GradedTokens graded = LATHE_TRY(graded_tokens(parsed, text));
    out.examples.push_back(LATHE_TRY(to_example(graded, vocab_size, max_positions)));
    return {};
  };
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    hash.update(std::as_bytes(std::span(line)));
    hash.update(std::as_bytes(std::span("\n", 1)));
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = path + ":" + std::to_string(number);
    if (format == TrainingFormat::kConversations) {
      // Without weights every assistant turn of a training conversation is learned, as in OpenAI's fine-tuning.
      const LearnExample parsed = LATHE_TRY(parse_training_line(line).at(where));
      LATHE_TRY(add(parsed).at(where));
    } else {
      const PreferencePair pair = LATHE_TRY(parse_preference_line(line).at(where));
      LATHE_TRY(add(pair.preferred).at(where + ": preferred_output"));
      LATHE_TRY(add(pair.rejected).at(where + ": non_preferred_output"));
    }
  }
  if (file.bad()) return Error{Code::kIo, "cannot read " + path + "; is it a directory?"};
  if (out.examples.empty()) return invalid_argument(path + " has no examples");
  out.hash = hash.finish().hex();
  return out;
}

}  // namespace lathe::api
