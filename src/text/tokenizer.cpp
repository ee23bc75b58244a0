#include "text/tokenizer.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "text/shim.h"

namespace lathe::text {

void Tokenizer::Release::operator()(lathe_tokenizer* tokenizer) const {
  lathe_tokenizer_release(tokenizer);
}

Result<Tokenizer> Tokenizer::parse(std::string_view json) {
  Tokenizer tokenizer;
  ShimBuffer error, description;
  lathe_tokenizer* handle = nullptr;
  LATHE_TRY(shim_status(lathe_tokenizer_create(bytes(json), json.size(), &handle, error.out()), error));
  tokenizer.handle_.reset(handle);
  LATHE_TRY(shim_status(lathe_tokenizer_describe(handle, description.out(), error.out()), error));
  const auto described = nlohmann::json::parse(description.view());
  tokenizer.size_ = described["size"].get<int64_t>();
  for (const auto& added : described["added"]) {
    tokenizer.added_.push_back(
        {added["id"].get<TokenId>(), added["text"].get<std::string>(), added["special"].get<bool>()});
    tokenizer.special_[tokenizer.added_.back().id] = tokenizer.added_.back().special;
  }
  return tokenizer;
}

Result<Encoding> Tokenizer::encode(std::string_view text) const {
  ShimBuffer error, ids, spans;
  LATHE_TRY(shim_status(
      lathe_tokenizer_encode(handle_.get(), bytes(text), text.size(), ids.out(), spans.out(), error.out()), error));
  Encoding encoding;
  const size_t count = ids.count<uint32_t>();
  encoding.ids.resize(count);
  encoding.spans.resize(count);
  for (size_t i = 0; i < count; ++i) {
    uint32_t id;
    uint64_t span[2];
    std::memcpy(&id, ids.as<std::byte>() + i * sizeof id, sizeof id);
    std::memcpy(span, spans.as<std::byte>() + i * sizeof span, sizeof span);
    encoding.ids[i] = static_cast<TokenId>(id);
    encoding.spans[i] = {span[0], span[1]};
  }
  return encoding;
}

Result<std::string> Tokenizer::decode(std::span<const TokenId> ids, bool skip_special) const {
  const std::vector<uint32_t> raw(ids.begin(), ids.end());
  ShimBuffer error, text;
  LATHE_TRY(shim_status(
      lathe_tokenizer_decode(handle_.get(), raw.data(), raw.size(), skip_special ? 1 : 0, text.out(), error.out()),
      error));
  return std::string(text.view());
}

Result<std::optional<TokenId>> Tokenizer::token_to_id(std::string_view token) const {
  ShimBuffer error;
  int64_t id = -1;
  LATHE_TRY(
      shim_status(lathe_tokenizer_token_to_id(handle_.get(), bytes(token), token.size(), &id, error.out()), error));
  return id < 0 ? std::nullopt : std::optional(static_cast<TokenId>(id));
}

Result<std::string> Tokenizer::id_to_token(TokenId id) const {
  ShimBuffer error, token;
  LATHE_TRY(shim_status(lathe_tokenizer_id_to_token(handle_.get(), static_cast<uint32_t>(id), token.out(), error.out()),
                        error));
  return std::string(token.view());
}

bool Tokenizer::is_special(TokenId id) const {
  const auto found = special_.find(id);
  return found != special_.end() && found->second;
}

namespace {

// A character has four bytes at most, so what is incomplete after this many tokens is none.
constexpr size_t kMaxPending = 8;

// Whether the text ends in U+FFFD: a character whose other bytes may still come.
bool ends_incomplete(std::string_view text) {
  return text.ends_with("\xEF\xBF\xBD");
}

}  // namespace

Result<std::string> StreamDecoder::push(TokenId id) {
  if (skip_special_ && tokenizer_->is_special(id)) return std::string();
  window_.push_back(id);
  const std::string before = LATHE_TRY(tokenizer_->decode(std::span(window_).first(given_), skip_special_));
  const std::string after = LATHE_TRY(tokenizer_->decode(window_, skip_special_));
  if (after.size() <= before.size()) return std::string();
  if (ends_incomplete(after) && window_.size() - given_ < kMaxPending) return std::string();
  // The tokens just given become the context of the next ones; older ones have done their duty.
  window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(given_));
  given_ = window_.size();
  return after.substr(before.size());
}

Result<std::string> StreamDecoder::finish() {
  const std::string before = LATHE_TRY(tokenizer_->decode(std::span(window_).first(given_), skip_special_));
  const std::string after = LATHE_TRY(tokenizer_->decode(window_, skip_special_));
  given_ = window_.size();
  return after.size() > before.size() ? after.substr(before.size()) : std::string();
}

}  // namespace lathe::text
