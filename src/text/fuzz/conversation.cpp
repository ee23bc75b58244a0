// Fuzz target: a conversation made of the input, graded by several templates.
//
// Bytes choose template, roles, weights and pieces of content: special tokens, marks of thinking, white space, letters
// of several bytes, raw bytes. Nearly every input is a conversation that some template takes, which random JSON
// (src/api/fuzz) seldom is.
#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "text/text.h"

namespace {

using namespace lathe;

class Input {
 public:
  Input(const uint8_t* bytes, size_t size) : bytes_(bytes), size_(size) {}
  bool empty() const { return size_ == 0; }
  uint8_t next() {
    if (size_ == 0) return 0;
    --size_;
    return *bytes_++;
  }

 private:
  const uint8_t* bytes_;
  size_t size_;
};

constexpr std::string_view kPieces[] = {"<|im_start|>",
                                        "<|im_end|>",
                                        "<think>",
                                        "</think>",
                                        "<think>\n\n</think>\n\n",
                                        "\n",
                                        "\n\n",
                                        " ",
                                        "\t",
                                        "assistant",
                                        "user",
                                        "Hello",
                                        "4",
                                        "\xc3\xa9",
                                        "\xf0\x9f\x98\x80",
                                        "\xe2\x80\x8b",
                                        "{{ x }}",
                                        "{% endif %}",
                                        "<tool_call>",
                                        "</tool_call>",
                                        "\xff",
                                        std::string_view("\0", 1)};

std::string content_of(Input& input) {
  std::string content;
  for (int n = input.next() % 6; n > 0; --n) content += kPieces[input.next() % std::size(kPieces)];
  return content;
}

// Chat formats of the field in few lines: ChatML, headers with trimmed content, brackets without a token at the turn's
// begin, and one that says nothing but the contents.
constexpr std::string_view kTemplates[] = {
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}<|im_end|>{% else %}[INST] {{ m.content }} "
    "[/INST]{% endif %}{% endfor %}",
    "{% for m in messages %}{{ m.content }}{% endfor %}",
};

const std::vector<text::ChatTemplate>& templates() {
  static const std::vector<text::ChatTemplate> all = [] {
    std::vector<text::ChatTemplate> made;
    for (const std::string_view source : kTemplates)
      made.push_back(text::ChatTemplate::create(source, "{}", {"<|im_start|>", "<|im_end|>"}).value());
    return made;
  }();
  return all;
}

const text::Text& own() {
  static const text::Text text =
      text::Text::load(io::posix_env(), std::string(LATHE_SOURCE_DIR) + "/tests/golden/text/own").value();
  return text;
}

// What must be found where an assistant speaks: the content after its thinking, without what a template may trim.
// Bytes that are not UTF-8, which the HTTP and file parsers refuse, come out as U+FFFD: of those contents nothing is
// asked.
std::string_view essence(std::string_view content) {
  constexpr std::string_view kEnd = "</think>";
  if (content.find('\xff') != content.npos) return {};
  if (const size_t at = content.rfind(kEnd); at != content.npos) content.remove_prefix(at + kEnd.size());
  const auto solid = [](char c) { return c > ' ' && c < 0x7F; };
  const auto begin = std::find_if(content.begin(), content.end(), solid);
  return {begin, std::find_if(content.rbegin(), std::make_reverse_iterator(begin), solid).base()};
}

// `said` is what was found of an assistant's turn: the message, and nothing of the header before it.
void check_turn(std::string_view said, const text::Message& message) {
  constexpr std::string_view kHeader = "<|im_start|>";
  LATHE_CHECK(said.find(essence(message.content)) != said.npos);
  LATHE_CHECK(message.content.find(kHeader) != std::string::npos || said.find(kHeader) == said.npos);
}

void check_spans(const text::ChatTemplate& chat, const std::vector<text::Message>& messages) {
  const auto conversation = chat.render_with_spans(messages, {});
  if (!conversation.ok()) return;
  const std::string_view text = conversation->text;
  auto span = conversation->assistant.begin();
  size_t end = 0;
  for (const text::Message& message : messages) {
    if (message.role != "assistant") continue;
    LATHE_CHECK(span != conversation->assistant.end());
    LATHE_CHECK(end <= span->begin && span->begin <= span->end && span->end <= text.size());
    check_turn(text.substr(span->begin, span->end - span->begin), message);
    end = span++->end;
  }
  LATHE_CHECK(span == conversation->assistant.end());
}

// Every turn has a weight of its own, so that a token's weight tells whose it is.
void check_graded(const std::vector<text::Message>& messages, const std::vector<float>& turn_weights) {
  const auto graded = own().graded(messages, turn_weights, {});
  if (!graded.ok()) return;
  LATHE_CHECK(graded->ids.size() == graded->weights.size());
  LATHE_CHECK(std::any_of(graded->weights.begin(), graded->weights.end(), [](float w) { return w > 0; }));
  size_t turn = 0;
  for (const text::Message& message : messages) {
    if (message.role != "assistant") continue;
    const float weight = turn_weights[turn++];
    if (weight == 0) continue;
    std::vector<text::TokenId> said;
    for (size_t t = 0; t < graded->ids.size(); ++t) {
      if (graded->weights[t] == weight) said.push_back(graded->ids[t]);
    }
    const std::string decoded = own().tokenizer().decode(said, /*skip_special=*/false).value();
    check_turn(decoded, message);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  constexpr std::string_view kRoles[] = {"user", "assistant", "assistant", "system", "tool", "wizard"};
  Input input(bytes, size);
  const size_t chosen = input.next() % (templates().size() + 1);
  std::vector<text::Message> messages = {{.role = "user", .content = "Hello"}};
  std::vector<float> weights;
  while (!input.empty() && messages.size() < 8) {
    const std::string_view role = kRoles[input.next() % std::size(kRoles)];
    messages.push_back({.role = std::string(role), .content = content_of(input)});
    if (role == "assistant") weights.push_back(input.next() % 3 == 0 ? 0.0F : static_cast<float>(messages.size()));
  }
  if (chosen < templates().size()) {
    check_spans(templates()[chosen], messages);
  } else {
    check_graded(messages, weights);
  }
  return 0;
}
