#include "text/foreign_tokens.h"

#include <algorithm>
#include <array>
#include <string>

#include "text/turn_spans.h"

namespace lathe::text {
namespace {

// Two, from a noncharacter and from a private plane, that share no first and no last byte: a turn may begin or end with
// a token of the one, but not with one of both.
constexpr std::array<const char*, 2> kNonces = {"\uFDD0\uFDD1", "\U000F0000"};

struct Range {
  size_t begin = 0;
  size_t end = 0;
};

Error not_shown(size_t index, const std::string& why) {
  return unsupported("the server's tokens do not show where message " + std::to_string(index) + " is (" + why +
                     "), so that it cannot be graded; --tokens=ours grades by the directory's chat template");
}

class ForeignTokens {
 public:
  ForeignTokens(std::span<const Message> messages, const TokenizeMessages& tokenize, const IsSpecial& is_special)
      : messages_(messages), tokenize_(tokenize), is_special_(is_special) {}

  Status load() {
    tokens_ = LATHE_TRY(tokenize_(messages_));
    return {};
  }
  std::vector<TokenId>& tokens() { return tokens_; }

  // The tokens of one turn, with the special token that ends it.
  Result<Range> turn(size_t index) {
    Range range{tokens_.size(), 0};
    for (const char* nonce : kNonces) {
      const auto other = tokens_with(index, nonce);
      if (!other.ok()) return not_shown(index, other.error().message);
      if (*other == tokens_) return not_shown(index, "it is left out");
      const auto shared = std::mismatch(tokens_.begin(), tokens_.end(), other->begin(), other->end()).first;
      const auto begin = static_cast<size_t>(shared - tokens_.begin());
      const auto limit = static_cast<ptrdiff_t>(std::min(tokens_.size(), other->size()) - begin);
      const auto tail = std::mismatch(tokens_.rbegin(), tokens_.rbegin() + limit, other->rbegin()).first;
      range.begin = std::min(range.begin, begin);
      range.end = std::max(range.end, tokens_.size() - static_cast<size_t>(tail - tokens_.rbegin()));
    }
    if (range.end < tokens_.size() && is_special_(tokens_[range.end]) && ends_turns(index)) ++range.end;
    return range;
  }

 private:
  Result<std::vector<TokenId>> tokens_with(size_t index, const char* nonce) const {
    std::vector<Message> changed(messages_.begin(), messages_.end());
    changed[index] = {.role = "assistant", .content = nonce};
    return tokenize_(changed);
  }

  // Whether the special token after turn `index` is the turn's, not the opening of the next message. The end of a
  // conversation has no next message, and shows it.
  bool ends_turns(size_t index) {
    if (index + 1 == messages_.size()) return true;
    if (!probed_) ends_turns_ = probe_ends_turns();
    probed_ = true;
    return ends_turns_;
  }

  bool probe_ends_turns() const {
    const std::array<Message, 2> probe = {
        {{.role = "user", .content = "Hello"}, {.role = "assistant", .content = kNonces[0]}}};
    const std::array<Message, 2> other = {{probe[0], {.role = "assistant", .content = kNonces[1]}}};
    const auto one = tokenize_(probe), two = tokenize_(other);
    if (!one.ok() || !two.ok()) return true;  // a template that refuses so plain a conversation: most end their turns
    const auto limit = static_cast<ptrdiff_t>(std::min(one->size(), two->size()));
    const auto tail = std::mismatch(one->rbegin(), one->rbegin() + limit, two->rbegin()).first;
    return tail != one->rbegin() && is_special_(*(tail - 1));
  }

  std::span<const Message> messages_;
  const TokenizeMessages& tokenize_;
  const IsSpecial& is_special_;
  std::vector<TokenId> tokens_;
  bool probed_ = false, ends_turns_ = true;
};

}  // namespace

Result<GradedTokens> graded_elsewhere(std::span<const Message> messages, std::span<const float> turn_weights,
                                      const TokenizeMessages& tokenize, const IsSpecial& is_special) {
  const auto turns =
      std::count_if(messages.begin(), messages.end(), [](const Message& m) { return m.role == "assistant"; });
  LATHE_TRY(check_turn_weights(static_cast<size_t>(turns), turn_weights));
  ForeignTokens conversation(messages, tokenize, is_special);
  LATHE_TRY(conversation.load());
  std::vector<float> weights(conversation.tokens().size());
  size_t turn = 0, previous_end = 0;
  bool any = false;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != "assistant") continue;
    const float weight = turn_weights[turn++];
    if (weight == 0) continue;
    const Range range = LATHE_TRY(conversation.turn(i));
    if (range.begin < previous_end) return not_shown(i, "it is mixed with others");
    std::fill(weights.begin() + static_cast<ptrdiff_t>(range.begin),
              weights.begin() + static_cast<ptrdiff_t>(std::max(range.begin, range.end)), weight);
    any |= range.begin < range.end;
    previous_end = std::max(range.begin, range.end);
  }
  if (!any) return nothing_graded();
  return GradedTokens{.ids = std::move(conversation.tokens()), .weights = std::move(weights)};
}

}  // namespace lathe::text
