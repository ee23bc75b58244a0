// TextStream: a Generation as text, with stop strings.
//
// Threads: one, the consumer's (an HTTP thread).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "text/tokenizer.h"

namespace lathe::engine {

struct TextDelta {
  std::string text;
  std::vector<Token> tokens;  // those that came since the last delta
};

class TextStream {
 public:
  // `tokenizer` outlives the stream. Stop strings are not part of the text; the generation is cancelled when one
  // appears.
  TextStream(std::shared_ptr<Generation> generation, const text::Tokenizer& tokenizer, std::vector<std::string> stop)
      : generation_(std::move(generation)), decoder_(tokenizer), stop_(std::move(stop)) {}
  ~TextStream() { generation_->cancel(); }
  TextStream(const TextStream&) = delete;
  TextStream& operator=(const TextStream&) = delete;

  // The next piece of text, or nothing at the end. Text that may begin a stop string is held back until that is
  // decided; a delta may have tokens and no text. Blocks.
  Result<std::optional<TextDelta>> next();

  // "stop" or "length"; valid at the end. kCancelled and the generation's own error come out of next().
  std::string finish_reason() const { return finish_reason_; }
  int64_t token_count() const { return tokens_; }
  const Generation& generation() const { return *generation_; }

 private:
  // What of `held_` can be given; sets `stopped_` when a stop string is in it.
  std::string release(bool at_end);

  std::shared_ptr<Generation> generation_;
  text::StreamDecoder decoder_;
  std::vector<std::string> stop_;
  std::string held_;
  std::string finish_reason_;
  int64_t tokens_ = 0;
  bool stopped_ = false;
  bool ended_ = false;
};

}  // namespace lathe::engine
