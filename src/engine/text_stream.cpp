#include "engine/text_stream.h"

#include <algorithm>

namespace lathe::engine {

std::string TextStream::release(bool at_end) {
  size_t cut = std::string::npos;
  for (const std::string& stop : stop_) cut = std::min(cut, held_.find(stop));
  if (cut != std::string::npos) {
    stopped_ = true;
    return held_.substr(0, cut);
  }
  size_t keep = 0;  // the longest end of the text that begins a stop string
  for (const std::string& stop : stop_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep && !at_end; --n) {
      if (held_.ends_with(std::string_view(stop).substr(0, n))) keep = n;
    }
  }
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, out.size());
  return out;
}

Result<std::optional<TextDelta>> TextStream::next() {
  if (ended_) return std::optional<TextDelta>();
  std::optional<Token> token = generation_->next();
  if (token) {
    ++tokens_;
    held_ += LATHE_TRY(decoder_.push(token->id));
    TextDelta delta{.text = release(/*at_end=*/false)};
    delta.tokens.push_back(std::move(*token));
    if (stopped_) {
      ended_ = true;
      finish_reason_ = "stop";
      generation_->cancel();
    }
    return std::optional(std::move(delta));
  }
  ended_ = true;
  const FinishReason reason = generation_->finish_reason();
  if (generation_->error()) return *generation_->error();
  if (reason == FinishReason::kCancelled)
    return Error{Code::kUnavailable, "the server is shutting down; the answer was not finished"};
  finish_reason_ = reason == FinishReason::kLength ? "length" : "stop";
  held_ += LATHE_TRY(decoder_.finish());
  TextDelta delta{.text = release(/*at_end=*/true)};
  if (stopped_) finish_reason_ = "stop";
  return std::optional(std::move(delta));
}

}  // namespace lathe::engine
