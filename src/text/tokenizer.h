// Tokenizer: tokenizer.json as servers use it, and text from a stream of tokens.
//
// Threads: a Tokenizer is immutable after load, any thread; a StreamDecoder belongs to one.
// Memory: RAII over the Rust library (rust/text_shim/text_shim.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"

struct lathe_tokenizer;

namespace lathe::text {

using TokenId = int32_t;

// Half-open, in bytes.
struct ByteSpan {
  size_t begin = 0;
  size_t end = 0;
  bool operator==(const ByteSpan&) const = default;
};

struct Encoding {
  std::vector<TokenId> ids;
  std::vector<ByteSpan> spans;  // of the encoded text, one per token; tokens of one character share its span
};

struct AddedToken {
  TokenId id = 0;
  std::string text;
  bool special = false;
};

class Tokenizer {
 public:
  // `json`: the contents of tokenizer.json.
  static Result<Tokenizer> parse(std::string_view json);

  // Adds no special tokens; those written in the text are recognised, as transformers does.
  // kInvalidArgument if the text is not UTF-8.
  Result<Encoding> encode(std::string_view text) const;
  // Bytes that form no character come out as U+FFFD.
  Result<std::string> decode(std::span<const TokenId> ids, bool skip_special) const;
  Result<std::optional<TokenId>> token_to_id(std::string_view token) const;
  Result<std::string> id_to_token(TokenId id) const;

  const std::vector<AddedToken>& added_tokens() const { return added_; }  // by id
  bool is_special(TokenId id) const;
  int64_t size() const { return size_; }  // with added tokens

 private:
  struct Release {
    void operator()(lathe_tokenizer* tokenizer) const;
  };
  std::unique_ptr<lathe_tokenizer, Release> handle_;
  std::vector<AddedToken> added_;
  std::unordered_map<TokenId, bool> special_;
  int64_t size_ = 0;
};

// Turns tokens into text as they come; what it gives never ends inside a character. Cost per token
// does not grow.
class StreamDecoder {
 public:
  // `tokenizer` outlives the decoder.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  Result<std::string> push(TokenId id);
  // What push() still held back; incomplete characters come out as U+FFFD.
  Result<std::string> finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  // Some tokenizers decode the first token of a text differently, so new tokens are decoded together
  // with some earlier ones.
  std::vector<TokenId> window_;
  size_t given_ = 0;  // tokens of the window whose text was given
};

}  // namespace lathe::text
